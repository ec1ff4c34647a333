"""Faults in files: damaged bytes, processes killed at random moments, full disks, and counts of the outcomes.

A damaged result must be refused, a damaged cache must count as absent, a killed process must leave the old or the new
content, and a full disk must cost nothing but the file that does not fit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import adtn
import numpy as np
from adtn import Config, Layout
from adtn._atomic import write_atomic
from adtn.compression import Tuning, load_layers, run_folder, save_layers
from adtn.errors import FileFormatError, OutputError, OutputWarning
from adtn.schedule._path_cache import PathCache
from processes import write_results

GEN = adtn.Generator((8, 12), adtn.TTN(bond=2), layout=Layout.of((8, 12), 4))
TARGET = np.sin(np.add.outer(np.arange(8) / 5, np.arange(12) / 7))
QUICK = Config(topology=adtn.TTN(bond=2), smallest=8, steps=2, tune_steps=4, targets=["0"])
KEY = "ab" * 32


def net() -> Any:
    """Make a small PyTorch model."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def data() -> Any:
    """Make two batches."""
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((4, 12)).astype("float32"), np.arange(4) % 3) for _ in range(2)]


def parameters(generators: Any) -> Any:
    """Return parameters in a form that can be compared."""
    return {f"{n}/{k}": x.tolist() for n, g in generators.items() for k, x in g.params.items()}


# --- damaged bytes ---


class Interrupted(Exception):
    """An error that ends a training, as if the process ended."""


def interrupt_at(stop: int | None) -> Callable[[int, float], None]:
    """Make a report function that ends a training at a step."""

    def report(step: int, loss: float) -> None:
        if step == stop:
            raise Interrupted

    return report


def fit(path: Path, stop: int | None = None) -> Any:
    """Fit with a checkpoint, and return the losses."""
    options = {"callbacks": [lambda step, _: step == stop], "checkpoint": path, "checkpoint_every": 2}
    return adtn.fit(GEN, TARGET, steps=6, **options).history.tolist()


def train_torch(path: Path, stop: int | None = None) -> Any:
    """Train a PyTorch model with a checkpoint, and return the losses."""
    from adtn_backends.torch._model import TorchModel

    tuning = Tuning(steps=10, train="all", checkpoint=path)
    return TorchModel(net(), None).tune(data(), None, tuning, interrupt_at(stop))


def train_jax(path: Path, stop: int | None = None) -> Any:
    """Train a Flax model with a checkpoint, and return the losses."""
    from flax import nnx

    from adtn_backends.jax._model import NnxModel

    model = nnx.Sequential(nnx.Linear(12, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
    tuning = Tuning(steps=10, train="all", checkpoint=path)
    return NnxModel(model, None).tune(data(), None, tuning, interrupt_at(stop))


def stopped(run: Callable[..., Any]) -> Callable[[Path], Path]:
    """Make a function that writes the checkpoint of an interrupted run."""

    def make(folder: Path) -> Path:
        with contextlib.suppress(Interrupted):
            run(folder / "checkpoint", 4)
        return folder / "checkpoint"

    return make


def compressed(part: str) -> Callable[[Path], Path]:
    """Make a function that writes a compressed model, and returns one of its files."""

    def make(folder: Path) -> Path:
        run_folder(net, QUICK, folder / "small")
        return next((folder / "small").glob(part))

    return make


def outputs(folder: Path) -> Any:
    """Compute outputs of the compressed model in a folder."""
    import torch

    return adtn.load_model(net(), folder)(torch.linspace(-1, 1, 12)[None]).tolist()


def saved(folder: Path) -> Path:
    """Write a generator."""
    adtn.save(folder / "x.safetensors", GEN)
    return folder / "x.safetensors"


def saved_codes(folder: Path) -> Path:
    """Write a generator with codes."""
    adtn.save(folder / "x.safetensors", GEN, adtn.Precision("int4"))
    return folder / "x.safetensors"


def layers(part: str) -> Callable[[Path], Path]:
    """Make a function that writes a folder of layers, such as an adapter, and returns one of its files."""

    def make(folder: Path) -> Path:
        save_layers(folder / "layers", {"a": GEN, "b": GEN})
        return next((folder / "layers").glob(part))

    return make


def cached_path(folder: Path) -> Path:
    """Write a cached contraction path."""
    find_path(folder)
    return folder / "ab" / f"{KEY}.json"


def find_path(folder: Path) -> Any:
    """Read a path from the cache, or make it."""
    return PathCache(folder).find(KEY, 3, lambda: ((0, 2), (0, 1)))


def profile(folder: Path) -> Path:
    """Write a device profile."""
    write_atomic(folder / "p.json", adtn.DeviceProfile.shipped("generic-cpu").to_json().encode())
    return folder / "p.json"


def finished(folder: Path) -> Path:
    """Write finished local fits, and return one of their files."""
    fits(folder)
    return next(folder.glob("0-*.safetensors"))


def fits(folder: Path) -> Any:
    """Read finished local fits from a folder, or make them."""
    return parameters(adtn.compress(net(), replace(QUICK, recipe="reconstruct"), folder=folder).generators)


@dataclass
class Kind:
    """A type of file: the functions that make and read it, and whether it is a cache."""

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    cache: bool = False


KINDS = {
    "generator": Kind(saved, lambda path: parameters({"": adtn.load(path)})),
    "checkpoint of a fit": Kind(stopped(fit), fit),
    "checkpoint of a training, PyTorch": Kind(stopped(train_torch), train_torch),
    "checkpoint of a training, JAX": Kind(stopped(train_jax), train_jax),
    "state of a compressed model": Kind(compressed("state.safetensors"), lambda path: outputs(path.parent)),
    "rounded generator": Kind(saved_codes, lambda path: parameters({"": adtn.load(path)})),
    "layer of an adapter": Kind(layers("a-*"), lambda path: parameters(load_layers(path.parent, "adapter"))),
    "index of an adapter": Kind(layers("index.json"), lambda path: parameters(load_layers(path.parent, "adapter"))),
    "device profile": Kind(profile, lambda path: adtn.DeviceProfile.load(path)),
    "cached path": Kind(cached_path, lambda path: find_path(path.parent.parent), cache=True),
    "finished local fit": Kind(finished, lambda path: fits(path.parent), cache=True),
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Damage a file: flip a bit, truncate it, or overwrite, insert or remove bytes."""
    at, n = rng.randrange(len(content)), rng.randrange(1, 20)
    kind = rng.choice(("flip", "flip", "cut", "overwrite", "insert", "lose"))
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    noise = rng.randbytes(n)
    return content[:at] + (b"" if kind == "lose" else noise) + content[at if kind == "insert" else at + n :]


def damage(name: str, kind: Kind, tries: int, seed: int) -> dict[str, Any]:
    """Count the outcomes of reading damaged files."""
    rng, outcomes = random.Random(f"{seed} {name}"), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        path = kind.make(Path(folder))
        content = path.read_bytes()
        good = kind.read(path)
        for _ in range(tries):
            bad = damaged(content, rng)
            path.write_bytes(bad)
            if bad == content:
                continue
            try:
                same = kind.read(path) == good
            except FileFormatError:
                outcomes["refused"] += 1
            except Exception as error:
                outcomes["other errors"] += 1
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            else:
                outcomes["other values" if not same else "as absent" if kind.cache else "unnoticed"] += 1
    columns = ("refused", "as absent", "unnoticed", "other values", "other errors")
    row = {"file": name, "cache": kind.cache, "damaged": outcomes.total(), **{c: outcomes[c] for c in columns}}
    print(row, file=sys.stderr)
    return row


# --- kills ---


def writes(folder: Path) -> None:
    """Write one file repeatedly."""
    for n in range(10**9):
        write_atomic(folder / "file", bytes([48 + n % 10]) * 200_000)


def saves(folder: Path) -> None:
    """Save three layers and one layer in turn."""
    for n in range(10**9):
        save_layers(folder / "layers", dict.fromkeys("abc"[: 1 + n % 2 * 2], GEN))


def compresses(folder: Path) -> None:
    """Compress one layer and two layers in turn."""
    for n in range(10**9):
        run_folder(net, replace(QUICK, targets=["0", "2"][: 1 + n % 2]), folder / "small")


def fits_once(folder: Path) -> None:
    """Run a fit to its end, with a checkpoint at every step."""
    history = adtn.fit(GEN, TARGET, steps=400, checkpoint=folder / "fit", checkpoint_every=1).history
    np.save(folder / "history.npy", history)


def whole_write(folder: Path) -> bool | None:
    """Return whether the file is intact, that is one digit throughout; ``None`` if there is no file yet."""
    if not (folder / "file").exists():
        return None
    content = (folder / "file").read_bytes()
    return len(content) == 200_000 and len(set(content)) == 1


def whole_save(folder: Path) -> bool | None:
    """Return whether the folder contains all layers or one; ``None`` if there is no folder yet."""
    if not (folder / "layers/index.json").exists():
        return None
    return set(load_layers(folder / "layers", "layers")) in ({"a"}, {"a", "b", "c"})


def whole_model(folder: Path) -> bool | None:
    """Return whether the model can be loaded; ``None`` if there is no model yet."""
    return bool(outputs(folder / "small")) if (folder / "small/state.safetensors").exists() else None


def whole_fit(folder: Path) -> bool | None:
    """Return whether a fit continues from the checkpoint, which is stopped at once; ``None`` if there is none yet."""
    if not (folder / "fit").exists():
        return None
    copy = shutil.copy(folder / "fit", folder / "copy")
    stop = [lambda step, loss: True]
    return adtn.fit(GEN, TARGET, steps=400, checkpoint=copy, checkpoint_every=1, callbacks=stop).steps > 0


KILLS: dict[str, tuple[Callable[[Path], None], Callable[[Path], bool | None], int]] = {
    "write_atomic": (writes, whole_write, 2),
    "folder of layers": (saves, whole_save, 1),
    "compressed model": (compresses, whole_model, 1),
    "fit with a checkpoint": (fits_once, whole_fit, 1),
}


def started(name: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a process, and wait until it is at work."""
    command = [sys.executable, __file__, "--child", name, str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def kills(name: str, times: int, seed: int) -> dict[str, Any]:
    """Count the outcomes of killing processes at random moments."""
    rng = random.Random(f"{seed} {name}")
    _, whole, writers = KILLS[name]
    row: dict[str, Any] = {"work": name, "kills": 0, "nothing yet": 0, "whole": 0, "broken": 0}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for _ in range(times):
            children = [started(name, folder) for _ in range(writers)]
            time.sleep(rng.random() * 0.5)
            for child in children:
                row["kills"] += child.poll() is None
                child.send_signal(signal.SIGKILL)
                child.communicate()
            try:
                row[{None: "nothing yet", True: "whole", False: "broken"}[whole(folder)]] += 1
            except Exception as error:
                row["broken"] += 1
                print(f"{name}: {error}", file=sys.stderr)
        row["temporary files"] = sum(p.name.startswith(".") for p in folder.rglob("*"))
        if name == "fit with a checkpoint":
            started(name, folder).wait()
            expected = adtn.fit(GEN, TARGET, steps=400, checkpoint=folder / "whole", checkpoint_every=1).history
            row["ends as an uninterrupted one"] = bool(np.array_equal(np.load(folder / "history.npy"), expected))
    print(row, file=sys.stderr)
    return row


# --- full disks ---


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path | None]:
    """Provide a folder on a disk of that many bytes; ``None`` where none can be mounted."""
    with tempfile.TemporaryDirectory() as place:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]
        done = subprocess.run(mount, capture_output=True) if shutil.which("mount") else None
        if done is None or done.returncode:
            yield None
            return
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


def filling(disk: Path, left: int) -> Callable[[], None]:
    """Make a function that fills a disk except for that many bytes."""

    def fill() -> None:
        with open(disk / "others", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        with open(disk / "others", "r+b") as file:
            file.truncate(max(file.seek(0, 2) - left, 0))

    return fill


def fit_there(disk: Path, fill: Callable[[], None]) -> bool:
    """Return whether the result of a fit is right, although its checkpoint may not fit."""

    def callback(step: int, loss: float) -> None:
        if step == 3:
            fill()

    options = {"callbacks": [callback], "checkpoint": disk / "fit", "checkpoint_every": 2}
    history = adtn.fit(GEN, TARGET, steps=6, **options).history
    return np.array_equal(history, adtn.fit(GEN, TARGET, steps=6).history)


def compress_there(disk: Path, fill: Callable[[], None]) -> bool:
    """Return whether a compressed model is written and can be loaded."""
    run_folder(net, QUICK, disk / "small", progress=lambda line: fill())
    return bool(outputs(disk / "small"))


def fit_from_the_command_line(disk: Path, fill: Callable[[], None]) -> bool:
    """Return whether the result of ``adtn fit`` is written and can be loaded."""
    import adtn.optim
    from adtn.cli import app
    from typer.testing import CliRunner

    def fit(*args: Any, **options: Any) -> Any:
        fill()
        return real(*args, **options)

    real, adtn.optim.fit = adtn.optim.fit, fit
    try:
        with tempfile.TemporaryDirectory() as place:
            np.save(f"{place}/w.npy", TARGET)
            command = ["fit", f"{place}/w.npy", "--steps", "3", "--out", str(disk / "x.safetensors")]
            done = CliRunner().invoke(app, command)
    finally:
        adtn.optim.fit = real
    if done.exception is not None:
        raise done.exception
    return adtn.load(disk / "x.safetensors").shape == TARGET.shape


DISKS: dict[str, Callable[[Path, Callable[[], None]], bool]] = {
    "fit with a checkpoint": fit_there,
    "compressed model": compress_there,
    "adtn fit --out": fit_from_the_command_line,
}


def full(name: str, times: int, seed: int) -> dict[str, Any]:
    """Count the outcomes of writing a result to a disk that is too small, or fills up meanwhile."""
    rng, outcomes = random.Random(f"{seed} {name}"), Counter[str]()
    for _ in range(times):
        size, left = 4096 * rng.randrange(8, 150), 4096 * rng.randrange(6)
        with small_disk(size) as disk, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", OutputWarning)
            if disk is None:
                outcomes["no small disk available"] += 1
                continue
            try:
                is_right = DISKS[name](disk, filling(disk, left))
            except OutputError as error:
                _, found, rest = str(error).partition("The result is in ")
                other = Path(rest.partition(" instead")[0]) if found else None
                outcomes["written elsewhere, as told" if other and other.exists() else "refused before the work"] += 1
                if other:
                    shutil.rmtree(other.parent)
            except Exception as error:
                outcomes["lost"] += 1
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            else:
                warned = any(issubclass(w.category, OutputWarning) for w in caught)
                outcomes["lost" if not is_right else "returned, with a warning" if warned else "written"] += 1
    columns = ("written", "refused before the work", "returned, with a warning", "written elsewhere, as told", "lost")
    row = {"work": name, "disks": times, **{c: outcomes[c] for c in columns}}
    if outcomes["no small disk available"]:
        row["no small disk available"] = outcomes["no small disk available"]
    print(row, file=sys.stderr)
    return row


def main() -> None:
    """Inject all faults, print counts, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--damages", type=int, default=150, help="per type of file")
    parser.add_argument("--kills", type=int, default=20, help="per kind of work")
    parser.add_argument("--disks", type=int, default=20, help="per kind of work")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "faults.json")
    parser.add_argument("--child", nargs=2, metavar=("WORK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        with tempfile.TemporaryDirectory() as place:
            # imports and plans are done before the clock starts
            run_folder(net, QUICK, Path(place))
            adtn.fit(GEN, TARGET, steps=1, checkpoint=Path(place) / "fit")
        print("at work", flush=True)
        KILLS[options.child[0]][0](Path(options.child[1]))
        return
    with contextlib.redirect_stdout(io.StringIO()):
        faults = {
            "damaged": [damage(name, kind, options.damages, options.seed) for name, kind in KINDS.items()],
            "kills": [kills(name, options.kills, options.seed) for name in KILLS],
            "full disks": [full(name, options.disks, options.seed) for name in DISKS],
        }
    write_results(options.out, seed=options.seed, faults=faults)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
