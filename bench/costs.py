"""Hidden costs: memory of random batch sizes and of new generators, inference, imports, threads.

Run as ``python bench/costs.py --before FOLDER`` on an idle machine; one process per case. The folder is an older
checkout of the project, which the same script measures, case by case in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import write_results

LIMIT = 60  # seconds per case; more for "threads"
_SPACE = 20 << 30  # bytes of address space
_MOST = 6 << 30  # bytes, beyond which a measurement stops
SHAPES = (1024, 4096, 65536)


def resident() -> int:
    """Return the peak of resident bytes of this process since :func:`reset`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def reset() -> None:
    """Reset the peak of resident bytes."""
    Path("/proc/self/clear_refs").write_text("5")


def median(fn: Callable[[], Any], seconds: float = 1.0) -> float:
    """Measure the median seconds of a function."""
    fn()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def random_batches(kind: str) -> dict[str, float]:
    """Train two 1024x1024 layers on 300 batches of 520 to 1,024 rows."""
    import adtn
    import numpy as np
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)

    def layer() -> Any:
        generator = adtn.Generator((1024, 1024), adtn.MPO(bond=4), layout=adtn.Layout.of((1024, 1024), 8))
        if kind == "dense":
            return torch.nn.Linear(1024, 1024)
        if kind == "cotengra":
            return Stored(generator)
        from adtn_backends.torch.layers import ADTNLinear

        return ADTNLinear(generator)

    class Stored(torch.nn.Module):
        """A layer that contracts the network and its input by cotengra's stored expressions."""

        def __init__(self, generator: Any) -> None:
            super().__init__()
            self.generator = generator
            self.cores = torch.nn.ParameterList([torch.tensor(x) for x in generator.params.values()])
            self.paths: dict[int, Any] = {}

        def forward(self, x: Any) -> Any:
            import cotengra

            batch, layout = x.shape[0], self.generator.layout
            segment = self.generator.segments[0]
            by_axis: list[list[str]] = [[], []]
            for name, (axis, _) in sorted(zip(segment.outputs, layout.leg_axes, strict=True), key=lambda p: p[1]):
                by_axis[axis].append(name)
            cores = {c.param: c.inds for c in segment.cores}
            inputs = [*(cores[name] for name in self.generator.params), ("batch", *by_axis[1])]
            arrays = [*self.cores, x.reshape(batch, *layout.factors[1])]
            if batch not in self.paths:
                self.paths[batch] = cotengra.array_contract_expression(
                    inputs,
                    ("batch", *by_axis[0]),
                    shapes=[a.shape for a in arrays],
                    optimize=cotengra.RandomGreedyOptimizer(max_repeats=32, seed=0, parallel=False),
                )
            return self.paths[batch](*arrays).reshape(batch, 1024)

    model = torch.nn.Sequential(layer(), layer())
    rng = np.random.default_rng(0)
    result: dict[str, float] = {}

    def step(batch: int) -> None:
        model(torch.randn(batch, 1024)).square().mean().backward()
        for p in model.parameters():
            p.grad = None

    step(64)
    reset()
    start = resident()
    for n in range(300):
        step(int(rng.integers(520, 1025)))
        if resident() > _MOST:
            return result | {"stopped_at": n + 1, "peak_mib": round(resident() / 2**20, 1)}
        if n in (9, 299):
            result[f"peak_mib_after_{n + 1}"] = round(resident() / 2**20, 1)
            result[f"above_start_mib_after_{n + 1}"] = round((resident() - start) / 2**20, 1)
    return result


TOPOLOGIES: dict[str, Callable[[Any], Any]] = {
    "ttn": lambda adtn: adtn.TTN(bond=4),
    "ttn linear": lambda adtn: adtn.TTN(bond=4, activation="identity"),
    "attn": lambda adtn: adtn.ATTN(bond=4),
    "mera": lambda adtn: adtn.MERA(bond=4),
    "mpo": lambda adtn: adtn.MPO(bond=8),
    "ring": lambda adtn: adtn.TensorRing(bond=4),
    "tucker": lambda adtn: adtn.Tucker(bond=2),
    "cp": lambda adtn: adtn.CP(bond=8),
    "random features": lambda adtn: adtn.RandomFeatures(bond=8),
    "brick wall 1": lambda adtn: adtn.BrickWall(layers=1),
    "brick wall 2": lambda adtn: adtn.BrickWall(layers=2),
    "brick wall 4": lambda adtn: adtn.BrickWall(layers=4),
}


def new_generator(name: str, n: int, what: str) -> dict[str, float]:
    """Make a generator of an ``n`` by ``n`` weight, or count its active parameters."""
    import adtn

    topology = TOPOLOGIES[name](adtn)
    adtn.Generator((64, 64), adtn.MPO(bond=4), layout=adtn.Layout.of((64, 64), 2))  # imports the path finders
    generator = adtn.Generator((64, 64), topology)
    if what == "active":
        small = generator.num_active_params
        assert small > 0
    reset()
    start, began = resident(), time.perf_counter()
    generator = adtn.Generator((n, n), topology)
    if what == "active":
        began = time.perf_counter()
        return {"active": generator.num_active_params, "seconds": round(time.perf_counter() - began, 3)}
    seconds = time.perf_counter() - began
    return {
        "seconds": round(seconds, 3),
        "peak_mib": round((resident() - start) / 2**20, 1),
        "weights": round((resident() - start) / (4 * n * n), 3),
    }


def inference(kind: str) -> dict[str, float]:
    """Measure inference over that of a dense layer in pairs: without gradients in training mode, or an embedding."""
    import adtn
    import torch

    from adtn_backends.torch.layers import ADTNEmbedding, ADTNLinear

    torch.set_num_threads(1)
    if kind == "embedding":
        layer = ADTNEmbedding(adtn.Generator((30522, 384), adtn.TTN(bond=8))).eval()
        dense, x = torch.nn.Embedding(30522, 384).eval(), torch.randint(30522, (64,))
    else:
        n = int(kind)
        layer = ADTNLinear(adtn.Generator((n, n), adtn.TTN(bond=4)), mode="materialise")
        dense, x = torch.nn.Linear(n, n), torch.randn(64, n)
    ratios: list[float] = []
    with torch.no_grad():
        for _ in range(30):
            ratios.append(median(lambda: layer(x), 0.01) / median(lambda: dense(x), 0.01))
    return {"ratio": round(statistics.median(ratios), 2)}


def fingerprint(bond: int) -> dict[str, float]:
    """Measure the time to check cores for changes, relative to the product that follows."""
    import adtn
    import torch

    from adtn_backends.torch.layers import ADTNLinear

    torch.set_num_threads(1)
    layer = ADTNLinear(adtn.Generator((1024, 1024), adtn.TTN(bond=bond)), mode="materialise").eval()
    weight, result = layer.generated, {"params": float(layer.generated.generator().num_params)}
    arrays = weight.arrays()
    check = median(lambda: weight.stamp(arrays), 0.2)
    with torch.no_grad():
        for batch in (1, 64):
            x, dense = torch.randn(batch, 1024), layer.weight
            product = median(lambda x=x, w=dense: torch.nn.functional.linear(x, w), 0.2)
            result[f"of_the_product_batch_{batch}"] = round(check / product, 4)
    return result


def imports() -> dict[str, float]:
    """Measure the seconds of importing the layers after PyTorch, with cached bytecode."""
    code = (
        "import time; import torch; t = time.perf_counter(); import adtn_backends.torch.layers; "
        "print(time.perf_counter() - t)"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = f"/tmp/adtn-costs-{os.getpid()}"
    runs = [
        float(subprocess.check_output([sys.executable, "-c", code], env=env, cwd=tempfile.gettempdir()))
        for _ in range(6)
    ][1:]
    return {"seconds": round(statistics.median(runs), 3)}


def threads() -> dict[str, float]:
    """Measure a NumPy fit of a 512x512 TTN with the default threads over one with a single thread, in pairs."""
    code = (
        "import time, adtn, numpy as np\n"
        "g = adtn.Generator((512, 512), adtn.TTN(bond=4)); W = np.random.default_rng(0).standard_normal((512, 512))\n"
        "adtn.fit(g, W, steps=20); t = time.perf_counter(); adtn.fit(g, W, steps=300); print(time.perf_counter() - t)"
    )
    keys = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    clean = {k: v for k, v in os.environ.items() if k not in keys}
    ratios: dict[str, list[float]] = {"idle": [], "ten_busy_processes": []}
    for name, values in ratios.items():
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(10 * (name != "idle"))]
        try:
            for _ in range(3):
                one, default = (
                    float(subprocess.check_output([sys.executable, "-c", code], env=env, cwd=tempfile.gettempdir()))
                    for env in (clean | dict.fromkeys(keys, "1"), clean)
                )
                values.append(default / one)
        finally:
            for process in busy:
                process.kill()
    return {f"ratio_{name}": round(statistics.median(values), 2) for name, values in ratios.items()}


CASES: dict[str, Callable[[], dict[str, float]]] = {
    **{f"random batches, {kind}": lambda kind=kind: random_batches(kind) for kind in ("adtn", "cotengra", "dense")},
    **{
        f"new generator, {name}, {n}": lambda name=name, n=n: new_generator(name, n, "new")
        for name in TOPOLOGIES
        for n in SHAPES
    },
    **{
        f"active parameters, {name}, {n}": lambda name=name, n=n: new_generator(name, n, "active")
        for name in TOPOLOGIES
        for n in SHAPES[:2]
    },
    **{f"no_grad in training mode, {n}": lambda n=n: inference(str(n)) for n in (256, 1024, 2048)},
    "embedding in evaluation mode, 64 tokens": lambda: inference("embedding"),
    **{f"looking at cores, bond {b}": lambda b=b: fingerprint(b) for b in (4, 16)},
    "import": imports,
    "threads": threads,
}


def measured(name: str, checkout: Path | None) -> dict[str, Any]:
    """Measure one case in a process of its own."""
    env = dict(os.environ)
    if checkout is not None:
        env["PYTHONPATH"] = os.pathsep.join([str(checkout), str(checkout / "backends")])
    command = [sys.executable, __file__, "--case", name]
    limit = 10 * LIMIT if name == "threads" else LIMIT
    try:
        done = subprocess.run(
            command,
            env=env,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit} s"}
    if done.returncode == 0:
        return json.loads(done.stdout)
    return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:120]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help="measure one case, in this process")
    parser.add_argument("--only", default="", help="measure only cases whose names contain this")
    parser.add_argument("--before", type=Path, help="an older checkout to measure as well")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "costs.json")
    args = parser.parse_args()
    if args.case:
        if args.case != "threads":
            resource.setrlimit(resource.RLIMIT_AS, (_SPACE, _SPACE))
        print(json.dumps(CASES[args.case]()))
        return
    rows: list[dict[str, Any]] = []
    if args.only and args.out.exists():  # rows of other cases are preserved
        rows = [row for row in json.loads(args.out.read_text())["costs"] if args.only not in row["case"]]
    for name in CASES:
        if args.only not in name:
            continue
        row: dict[str, Any] = {"case": name}
        if args.before is not None and "cotengra" not in name and "dense" not in name:
            row["before"] = measured(name, args.before.resolve())
        row["after"] = measured(name, None)
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
        write_results(args.out, costs=rows)


if __name__ == "__main__":
    main()
