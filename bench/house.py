"""Paired times of two checkouts, to find out whether a change of structure made anything slower.

Run as ``python bench/house.py --before FOLDER`` on an idle machine; the folder is an older checkout, which is compared
with the checkout of this script (or ``--after``). Each side has its own worker processes, which share a processor and
sleep while the other side works. A case is slower if the lower end of the interval of its median paired ratio (after /
before) is above 1.03; the exit status is 1 then. ``--only TEXT`` repeats the cases whose names contain the text, and
preserves the rows of others.

Only public names that both checkouts have are used, as their modules are in different places.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

BOUND = 1.03  # the smallest ratio that counts as slower
SIDES = ("before", "after")
SECONDS = 0.04  # of one run of a case; more if a single iteration takes longer
ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "torch": ("adtn_backends.torch.layers", "adtn_backends.torch_layers"),
    "jax": ("adtn_backends.jax.layers", "adtn_backends.jax_layers"),
}
DEVICES = ("numpy:cpu", "torch:cpu", "jax:cpu")
MODES = ("factored", "materialise", "stream")
Run = Callable[[int], float]  # runs n iterations, and returns the seconds that they took
Prepare = Callable[[ExitStack], Run]  # the stack holds what must be undone after the case


# --- the cases, in a worker ---


def layers(framework: str) -> Any:
    """Import the module of the layers, which is in different places in different checkouts."""
    for name in LAYERS[framework]:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or "-"):
                raise
            continue
        if hasattr(module, "ADTNLinear"):
            return module
    raise ImportError(f"none of {LAYERS[framework]} has ADTNLinear")


def repeated(once: Callable[[], Any]) -> Run:
    """Make a run that repeats a function."""

    def run(n: int) -> float:
        began = time.perf_counter()
        for _ in range(n):
            once()
        return time.perf_counter() - began

    return run


def array(device: str, *shape: int) -> Any:
    """Make a random float32 array on a device."""
    import numpy as np

    x = np.random.default_rng(7).standard_normal(shape, dtype=np.float32)
    if device.startswith("torch"):
        import torch

        return torch.from_numpy(x)
    if device.startswith("jax"):
        import jax.numpy as jnp

        return jnp.asarray(x)
    return x


def waited(x: Any) -> None:
    """Wait for a result, as JAX returns before it is computed."""
    if hasattr(x, "block_until_ready"):
        x.block_until_ready()


TOPOLOGIES: dict[str, Callable[[Any, str], Any]] = {
    "TTN": lambda adtn, act: adtn.TTN(bond=4, activation=act),
    "MPO": lambda adtn, act: adtn.MPO(bond=8, activation=act),
    "brick wall": lambda adtn, act: adtn.BrickWall(layers=2, activation=act),
    "Tucker": lambda adtn, act: adtn.Tucker(bond=2, activation=act),
}
KINDS = {"nonlinear": "silu", "linear": "identity"}


def generator(topology: str, n: int, kind: str = "nonlinear") -> Any:
    """Make a generator of an ``n`` by ``n`` weight."""
    import adtn

    return adtn.Generator((n, n), TOPOLOGIES[topology](adtn, KINDS[kind]))


class _Steps:
    """A fit that waits in its callback, and does a given number of steps when it is called."""

    def __init__(self, gen: Any, device: str) -> None:
        self._left, self._ended = 0, False
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, args=(gen, array("numpy", *gen.shape), device), daemon=True)
        self._thread.start()
        self._wait()

    def _fit(self, gen: Any, target: Any, device: str) -> None:
        import adtn

        try:
            # a small rate, as a loss near zero would be recomputed exactly, at another cost
            options: dict[str, Any] = {"lr": 1e-7, "schedule": "constant", "progress": False}
            adtn.fit(gen, target, device=device, steps=10**7, callbacks=[self._callback], **options)
        except BaseException as error:
            self._failed = error
        self._ended = True
        self._done.release()

    def _callback(self, step: int, loss: float) -> bool:
        if self._left == 0:
            self._done.release()
            self._go.acquire()
        self._left -= 1
        return self._left < 0

    def _wait(self) -> None:
        self._done.acquire()
        if self._ended:
            raise RuntimeError("the fit ended unexpectedly") from self._failed

    def __call__(self, n: int) -> float:
        self._left = n
        began = time.perf_counter()
        self._go.release()
        self._wait()
        return time.perf_counter() - began

    def close(self) -> None:
        """End the fit."""
        if not self._ended:
            self._left = 0
            self._go.release()
            self._thread.join()


def fit_steps(stack: ExitStack, topology: str, n: int, kind: str, device: str) -> Run:
    """Prepare the steps of one fit."""
    steps = _Steps(generator(topology, n, kind), device)
    stack.callback(steps.close)
    return steps


def whole_fit(stack: ExitStack, topology: str, device: str) -> Run:
    """Prepare whole fits of a few steps, including compiling and planning."""
    import adtn

    gen, target = generator(topology, 64), array("numpy", 64, 64)
    return repeated(lambda: adtn.fit(gen, target, device=device, steps=10, progress=False))


def second_order_fit(stack: ExitStack, topology: str, device: str, optimizer: str, steps: int) -> Run:
    """Prepare whole fits of a small weight, where the time of the optimizer itself is visible."""
    import adtn

    gen, target = generator(topology, 64), array("numpy", 64, 64)
    return repeated(lambda: adtn.fit(gen, target, device=device, optimizer=optimizer, steps=steps, progress=False))


def weight(stack: ExitStack, topology: str, device: str) -> Run:
    """Prepare the generation of a weight."""
    gen = generator(topology, 1024)
    return repeated(lambda: waited(gen.weight(device)))


def apply(stack: ExitStack, topology: str, device: str, batch: int, mode: str) -> Run:
    """Prepare products of a weight with a batch."""
    gen, x = generator(topology, 1024), array(device, batch, 1024)
    return repeated(lambda: waited(gen.apply(x, mode=mode)))


def torch_step(layer: Any, x: Any) -> Run:
    """Prepare forward and backward passes of a PyTorch layer."""
    params = list(layer.parameters())

    def step() -> None:
        layer(x).square().mean().backward()
        for p in params:
            p.grad = None

    return repeated(step)


def linear_torch(stack: ExitStack, topology: str, batch: int, mode: str) -> Run:
    """Prepare training steps of a linear PyTorch layer."""
    return torch_step(layers("torch").ADTNLinear(generator(topology, 1024), mode=mode), array("torch", batch, 1024))


def convolution_torch(stack: ExitStack) -> Run:
    """Prepare training steps of a PyTorch convolution."""
    import adtn

    gen = adtn.Generator((64, 64, 3, 3), adtn.TTN(bond=4))
    return torch_step(layers("torch").ADTNConv2d(gen, padding=1), array("torch", 4, 64, 16, 16))


def embedding_torch(stack: ExitStack, training: bool) -> Run:
    """Prepare training steps or look-ups of a PyTorch embedding."""
    import adtn
    import torch

    layer = layers("torch").ADTNEmbedding(adtn.Generator((4096, 256), adtn.TTN(bond=4)))
    ids = torch.arange(64) * 61
    if training:
        return torch_step(layer, ids)

    def look_up() -> None:
        with torch.no_grad():
            layer(ids)

    layer.eval()
    return repeated(look_up)


def linear_flax(stack: ExitStack, topology: str, batch: int, mode: str) -> Run:
    """Prepare gradients of a linear Flax layer."""
    import jax
    from flax import nnx

    graph, params = nnx.split(layers("jax").ADTNLinear(generator(topology, 1024), mode=mode))
    gradients = jax.jit(jax.grad(lambda params, x: (nnx.merge(graph, params)(x) ** 2).mean()))
    x = array("jax", batch, 1024)
    return repeated(lambda: jax.block_until_ready(gradients(params, x)))


def structures(topology: str, what: str) -> Iterator[tuple[Any, ...]]:
    """Yield structures of similar size that are in no cache, not even from the other case; the same on both sides."""
    import adtn

    for a, b in itertools.product(range(5, 30), range(5, 30) if what == "plan" else range(30, 55)):
        layout = adtn.Layout.from_factors((64 * a, 64 * b), ((8, 8, a), (8, 8, b)))
        yield layout.shape, TOPOLOGIES[topology](adtn, "silu"), layout


def fresh(stack: ExitStack, topology: str, what: str) -> Run:
    """Prepare generators, or plans, of structures that were never used before."""
    import adtn

    unseen = structures(topology, what)

    def run(n: int) -> float:
        seconds = 0.0
        for _ in range(n):
            shape, tree, layout = next(unseen)
            began = time.perf_counter()
            gen = adtn.Generator(shape, tree, layout=layout)
            if what == "plan":
                began = time.perf_counter()
                adtn.plan(gen, "fit")
            seconds += time.perf_counter() - began
        return seconds

    return run


def construct(stack: ExitStack, topology: str) -> Run:
    """Prepare generators of a structure that is cached."""
    return repeated(lambda: generator(topology, 1024))


def file(stack: ExitStack, what: str) -> Run:
    """Prepare writing or reading a file."""
    import adtn

    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "x.safetensors"
    gen = generator("TTN", 1024)
    adtn.save(path, gen)
    return repeated((lambda: adtn.save(path, gen)) if what == "save" else (lambda: adtn.load(path)))


def _cases() -> dict[str, Prepare]:
    cases: dict[str, Prepare] = {}

    def add(name: str, prepare: Callable[..., Run], *args: Any) -> None:
        cases[name] = lambda stack: prepare(stack, *args)

    for device, topology, kind, n in itertools.product(DEVICES, TOPOLOGIES, KINDS, (64, 512, 1024)):
        add(f"fit step, {device}, {topology} {kind}, {n}", fit_steps, topology, n, kind, device)
    for device, topology in itertools.product(DEVICES, TOPOLOGIES):
        add(f"fit of 10 steps, {device}, {topology}, 64", whole_fit, topology, device)
        if device != "jax:cpu":  # where compiling would dominate
            add(f"fit of 60 steps by lbfgs, {device}, {topology}, 64", second_order_fit, topology, device, "lbfgs", 60)
            add(f"fit of 5 steps by lm, {device}, {topology}, 64", second_order_fit, topology, device, "lm", 5)
        add(f"weight, {device}, {topology}, 1024", weight, topology, device)
    for device, topology, batch, mode in itertools.product(DEVICES, ("TTN", "MPO"), (1, 64), MODES):
        add(f"apply, {device}, {topology}, 1024, batch {batch}, {mode}", apply, topology, device, batch, mode)
    for topology, batch, mode in itertools.product(("TTN", "MPO"), (1, 64), MODES):
        add(f"train ADTNLinear, torch, {topology}, 1024, batch {batch}, {mode}", linear_torch, topology, batch, mode)
        add(f"train ADTNLinear, flax, {topology}, 1024, batch {batch}, {mode}", linear_flax, topology, batch, mode)
    add("train ADTNConv2d, torch", convolution_torch)
    add("ADTNEmbedding, torch, 64 ids, inference", embedding_torch, False)
    add("ADTNEmbedding, torch, 64 ids, training", embedding_torch, True)
    for topology in ("TTN", "MPO"):
        add(f"plan of a new structure, {topology}", fresh, topology, "plan")
        add(f"Generator of a new structure, {topology}", fresh, topology, "generator")
        add(f"Generator, {topology}, 1024", construct, topology)
    for what in ("save", "load"):
        add(what, file, what)
    return cases


CASES = _cases()
ONCE = ("of a new structure",)  # cases with one iteration, as structures are limited
IMPORTS = {  # imports before the clock starts, and the timed import; {torch} and {jax} are the modules of the layers
    "import adtn": ("", "adtn"),
    "import the layers after torch": ("torch", "{torch}"),
    "import the layers after flax": ("jax, optax, flax.nnx", "{jax}"),
}


def work() -> None:
    """Run a worker, which answers each line of input with a line of output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that other output does not mix with the answers
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    stack, run = ExitStack(), None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                run = CASES[request["case"]](stack)
                # the first runs import and compile; JAX compiles in two of them
                answer: dict[str, Any] = {"seconds": min(run(1) for _ in range(4 if request["again"] else 1))}
                gc.collect()
                gc.freeze()  # so that existing objects are not collected in every run
            elif request["do"] == "run":
                assert run is not None
                gc.collect()
                answer = {"seconds": run(request["n"])}
            elif request["do"] == "drop":
                run = None
                gc.unfreeze()
                stack.close()
                answer = {}
            else:
                answer = about()
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(answer), file=answers, flush=True)


def about() -> dict[str, Any]:
    """Describe the modules that a worker uses."""
    from importlib.metadata import entry_points

    import adtn

    backends = {e.name: e.value for e in entry_points(group="adtn.backends")}
    names = {framework: layers(framework).__name__ for framework in LAYERS}
    return {"adtn": adtn.__file__, "backends": backends, "layers": names}


# --- the two sides ---


def python_path(checkout: Path, scratch: Path) -> str:
    """Return a ``PYTHONPATH`` with which a checkout counts as installed, and write its metadata to an empty folder.

    Backends are found through entry points. Those of the installed distribution may refer to modules of another
    checkout, but of two distributions with the same name, the first on the path counts.
    """
    with (checkout / "pyproject.toml").open("rb") as opened:
        project = tomllib.load(opened)["project"]
    version = (checkout / "adtn" / "_version.py").read_text().partition("__version__ = ")[2].split()[0].strip("\"'")
    info = scratch / f"{project['name']}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n")
    groups = {**project.get("entry-points", {}), "console_scripts": project.get("scripts", {})}
    parts = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for g, entries in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(parts))
    return os.pathsep.join(map(str, (scratch, checkout, checkout / "backends")))


class Side:
    """A checkout, and the worker that runs it."""

    def __init__(self, checkout: Path, scratch: Path) -> None:
        self.checkout, self.scratch = checkout, scratch
        threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        self.env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | dict.fromkeys(threads, "1")
        self.env |= {
            "PYTHONPATH": python_path(checkout, scratch),
            "PYTHONHASHSEED": "0",  # the same order of sets on both sides
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        }
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> dict[str, Any]:
        """Start a new worker with an empty cache, and return its description."""
        self.env["ADTN_CACHE"] = tempfile.mkdtemp(dir=self.scratch)
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--worker"],
            env=self.env,
            cwd=self.scratch,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        answer = self.ask(do="about")
        if not Path(answer.get("adtn", "/")).is_relative_to(self.checkout):
            raise RuntimeError(f"the worker of {self.checkout} uses another checkout: {answer}")
        return answer

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request to the worker, and return its answer."""
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.checkout} ended with {self.process.wait()}")
        return json.loads(line)

    def seconds(self, n: int) -> float:
        """Run ``n`` iterations of the prepared case."""
        answer = self.ask(do="run", n=n)
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer["seconds"]

    def stop(self) -> None:
        """Stop the worker."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def importing(self, before: str, what: str) -> float:
        """Measure the seconds of an import in a new process."""
        code = "import time; t = time.perf_counter(); " + f"import {what}; print(time.perf_counter() - t)"
        code = f"import {before}\n{code}" if before else code
        command = [sys.executable, "-P", "-c", code]
        return float(subprocess.check_output(command, env=self.env, cwd=self.scratch))

    def commit(self) -> dict[str, Any]:
        """Return the commit of the checkout, if it is a Git repository."""

        def git(*args: str) -> str:
            done = subprocess.run(["git", "-C", str(self.checkout), *args], capture_output=True, text=True, check=False)
            return done.stdout.strip()

        is_repository = git("rev-parse", "--show-toplevel") == str(self.checkout)
        changed = bool(git("status", "--porcelain", "--", "adtn", "backends")) if is_repository else None
        return {"commit": git("rev-parse", "HEAD") if is_repository else "no checkout", "changed": changed}


def in_turns(pairs: int, first: int, run: Callable[[str], float]) -> list[list[float]]:
    """Measure the seconds of both sides in pairs: before, after, after, before, and so on."""
    measurements: list[list[float]] = []
    for k in range(first, first + pairs):
        order = SIDES if k % 2 == 0 else SIDES[::-1]
        pair = {name: run(name) for name in order}
        measurements.append([pair[name] for name in SIDES])
    return measurements


def measured(sides: dict[str, Side], case: str, pairs: int, first: int) -> dict[str, Any]:
    """Measure some pairs of a case in the running workers."""
    once = any(text in case for text in ONCE)
    answers = {name: side.ask(do="prepare", case=case, again=not once) for name, side in sides.items()}
    try:
        failed = {name: answer["failed"] for name, answer in answers.items() if "failed" in answer}
        if failed:
            return {"failed": failed}
        n = 1 if once else max(1, round(SECONDS / max(answers["before"]["seconds"], 1e-7)))
        if n > 1:  # the time of one iteration is a poor estimate for many
            n = max(1, round(n * SECONDS / sides["before"].seconds(n)))
            sides["after"].seconds(n)
        measurements = in_turns(pairs, first, lambda name: sides[name].seconds(n))
        return {"iterations": n, "seconds": [[x / n for x in pair] for pair in measurements]}
    except RuntimeError as error:
        return {"failed": str(error)}
    finally:
        for side in sides.values():
            side.ask(do="drop")


def statistics(seconds: list[list[float]]) -> dict[str, Any]:
    """Compute the median of the paired ratios with a bootstrap interval of 95 %, and summarise the measurements."""
    import numpy as np

    times = np.asarray(seconds)
    ratios = times[:, 1] / times[:, 0]
    drawn = np.random.default_rng(0).integers(len(ratios), size=(10_000, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
    return {
        "pairs": len(ratios),
        "ratio": round(float(np.median(ratios)), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "verdict": "ok" if low <= BOUND else "slower",
        **{f"{name}_seconds": float(np.median(times[:, k])) for k, name in enumerate(SIDES)},
        "ratios": [round(float(r), 4) for r in ratios],
    }


def all_rows(sides: dict[str, Side], names: list[str], pairs: int, rounds: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows after every round; each round has new processes, as processes differ by chance."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    others: dict[str, dict[str, Any]] = {name: {} for name in names}
    for turn in range(rounds):
        first = turn * pairs // rounds
        count = (turn + 1) * pairs // rounds - first
        modules = {name: side.start() for name, side in sides.items()}
        if turn == 0:
            print(json.dumps(modules), file=sys.stderr)
        for case in names:
            if "failed" in others[case]:
                continue
            if case in IMPORTS:
                code = {name: [t.format(**modules[name]["layers"]) for t in IMPORTS[case]] for name in SIDES}
                for name in SIDES:
                    sides[name].importing(*code[name])  # writes bytecode
                run = lambda name, code=code: sides[name].importing(*code[name])  # noqa: E731
                row = {"iterations": 1, "seconds": in_turns(count, first, run)}
            else:
                row = measured(sides, case, count, first)
            seconds[case] += row.pop("seconds", [])
            others[case] |= row
            ratio = seconds[case] and statistics(seconds[case])["ratio"]
            print(case, others[case], ratio, file=sys.stderr, flush=True)
        for side in sides.values():
            side.stop()
        yield [{"case": c, **others[c], **({} if "failed" in others[c] else statistics(seconds[c]))} for c in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--before", type=Path, help="the older checkout")
    parser.add_argument("--after", type=Path, default=ROOT, help="the newer checkout; by default, that of this script")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes over which the pairs are spread")
    parser.add_argument("--only", default="", help="measure only cases whose names contain this")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "house.json")
    args = parser.parse_args()
    if args.worker:
        work()
        return 0
    if args.before is None:
        parser.error("--before FOLDER is required")
    from processes import write_results

    names = [name for name in (*CASES, *IMPORTS) if args.only in name]
    if not names:
        parser.error(f"no case contains {args.only!r}")
    others: list[dict[str, Any]] = []
    if args.only and args.out.exists():
        others = [row for row in json.loads(args.out.read_text())["house"] if row["case"] not in names]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="adtn-house-") as folder:
        sides = {name: Side(getattr(args, name).resolve(), Path(folder) / name) for name in SIDES}
        commits = {name: side.commit() for name, side in sides.items()}
        try:
            for rows in all_rows(sides, names, args.pairs, min(args.rounds, args.pairs)):
                write_results(args.out, commits=commits, bound=BOUND, house=[*others, *rows])
        finally:
            for side in sides.values():
                side.stop()
    bad = [row for row in rows if row.get("verdict") != "ok"]
    for row in bad:
        print(row["case"], row.get("failed") or f"{row['ratio']} ({row['low']} to {row['high']})")
    print(f"{len(rows)} cases, {len(bad)} slower or failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
