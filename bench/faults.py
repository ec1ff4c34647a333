"""Inject faults into files: damaged bytes, kills at random moments, full disks; count what came of them.

A damaged result must be refused, a damaged cache count as absent, a killed process leave the old or the new content,
and a full disk cost nothing but the file that did not fit.
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
    """A small model of PyTorch."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def data() -> Any:
    """Two batches."""
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((4, 12)).astype("float32"), np.arange(4) % 3) for _ in range(2)]


def numbers(generators: Any) -> Any:
    """Comparable parameters."""
    return {f"{n}/{k}": x.tolist() for n, g in generators.items() for k, x in g.params.items()}


# --- damaged bytes ---


class Cut(Exception):
    """As if the process ended there."""


def cut(stop: int | None) -> Callable[[int, float], None]:
    """A report that ends a training."""

    def report(step: int, loss: float) -> None:
        if step == stop:
            raise Cut

    return report


def fit(path: Path, stop: int | None = None) -> Any:
    """With a checkpoint."""
    options = {"callbacks": [lambda step, _: step == stop], "checkpoint": path, "checkpoint_every": 2}
    return adtn.fit(GEN, TARGET, steps=6, **options).history.tolist()


def train_torch(path: Path, stop: int | None = None) -> Any:
    """With a checkpoint."""
    from adtn_backends.torch._model import TorchModel

    return TorchModel(net(), None).tune(data(), None, Tuning(steps=10, train="all", checkpoint=path), cut(stop))


def train_jax(path: Path, stop: int | None = None) -> Any:
    """With a checkpoint."""
    from flax import nnx

    from adtn_backends.jax._model import NnxModel

    model = nnx.Sequential(nnx.Linear(12, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
    return NnxModel(model, None).tune(data(), None, Tuning(steps=10, train="all", checkpoint=path), cut(stop))


def stopped(run: Callable[..., Any]) -> Callable[[Path], Path]:
    """The checkpoint of a run that was cut off."""

    def make(folder: Path) -> Path:
        with contextlib.suppress(Cut):
            run(folder / "checkpoint", 4)
        return folder / "checkpoint"

    return make


def compressed(part: str) -> Callable[[Path], Path]:
    """A file of a compressed model."""

    def make(folder: Path) -> Path:
        run_folder(net, QUICK, folder / "small")
        return next((folder / "small").glob(part))

    return make


def outputs(folder: Path) -> Any:
    """Of the compressed model."""
    import torch

    return adtn.load_model(net(), folder)(torch.linspace(-1, 1, 12)[None]).tolist()


def saved(folder: Path) -> Path:
    """A generator."""
    adtn.save(folder / "x.safetensors", GEN)
    return folder / "x.safetensors"


def layers(part: str) -> Callable[[Path], Path]:
    """A file of a folder of layers, which adapters are."""

    def make(folder: Path) -> Path:
        save_layers(folder / "layers", {"a": GEN, "b": GEN})
        return next((folder / "layers").glob(part))

    return make


def cached_path(folder: Path) -> Path:
    """A contraction path."""
    find_path(folder)
    return folder / "ab" / f"{KEY}.json"


def find_path(folder: Path) -> Any:
    """From the cache, or made."""
    return PathCache(folder).find(KEY, 3, lambda: ((0, 2), (0, 1)))


def profile(folder: Path) -> Path:
    """Of a device."""
    write_atomic(folder / "p.json", adtn.DeviceProfile.shipped("generic-cpu").to_json().encode())
    return folder / "p.json"


def finished(folder: Path) -> Path:
    """A finished local fit."""
    fits(folder)
    return next(folder.glob("0-*.safetensors"))


def fits(folder: Path) -> Any:
    """From the folder, or made."""
    return numbers(adtn.compress(net(), replace(QUICK, recipe="reconstruct"), folder=folder).generators)


@dataclass
class Kind:
    """How a type of file is made and read, and whether it is a cache."""

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    cache: bool = False


KINDS = {
    "generator": Kind(saved, lambda path: numbers({"": adtn.load(path)})),
    "checkpoint of a fit": Kind(stopped(fit), fit),
    "checkpoint of a training, PyTorch": Kind(stopped(train_torch), train_torch),
    "checkpoint of a training, JAX": Kind(stopped(train_jax), train_jax),
    "state of a compressed model": Kind(compressed("state.safetensors"), lambda path: outputs(path.parent)),
    "layer of a compressed model": Kind(compressed("generators/0*"), lambda path: outputs(path.parent.parent)),
    "layer of an adapter": Kind(layers("a-*"), lambda path: numbers(load_layers(path.parent, "adapter"))),
    "index of an adapter": Kind(layers("index.json"), lambda path: numbers(load_layers(path.parent, "adapter"))),
    "device profile": Kind(profile, lambda path: adtn.DeviceProfile.load(path)),
    "cached path": Kind(cached_path, lambda path: find_path(path.parent.parent), cache=True),
    "finished local fit": Kind(finished, lambda path: fits(path.parent), cache=True),
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One of: a flipped bit, a file that ends early, bytes overwritten, inserted or lost."""
    at, n = rng.randrange(len(content)), rng.randrange(1, 20)
    kind = rng.choice(("flip", "flip", "cut", "overwrite", "insert", "lose"))
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    noise = rng.randbytes(n)
    return content[:at] + (b"" if kind == "lose" else noise) + content[at if kind == "insert" else at + n :]


def damage(name: str, kind: Kind, tries: int, seed: int) -> dict[str, Any]:
    """What reading damaged files led to."""
    rng, found = random.Random(f"{seed} {name}"), Counter[str]()
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
                found["refused"] += 1
            except Exception as error:
                found["other errors"] += 1
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            else:
                found["other numbers" if not same else "as absent" if kind.cache else "unnoticed"] += 1
    columns = ("refused", "as absent", "unnoticed", "other numbers", "other errors")
    row = {"file": name, "cache": kind.cache, "damaged": found.total(), **{c: found[c] for c in columns}}
    print(row, file=sys.stderr)
    return row


# --- kills ---


def writes(folder: Path) -> None:
    """One file, again and again."""
    for n in range(10**9):
        write_atomic(folder / "file", bytes([48 + n % 10]) * 200_000)


def saves(folder: Path) -> None:
    """Three layers, or one."""
    for n in range(10**9):
        save_layers(folder / "layers", dict.fromkeys("abc"[: 1 + n % 2 * 2], GEN))


def compresses(folder: Path) -> None:
    """One layer, or two."""
    for n in range(10**9):
        run_folder(net, replace(QUICK, targets=["0", "2"][: 1 + n % 2]), folder / "small")


def fits_once(folder: Path) -> None:
    """To the end, with a checkpoint at every step."""
    history = adtn.fit(GEN, TARGET, steps=400, checkpoint=folder / "fit", checkpoint_every=1).history
    np.save(folder / "history.npy", history)


def whole_write(folder: Path) -> bool | None:
    """One digit throughout; nothing where no file is yet."""
    if not (folder / "file").exists():
        return None
    content = (folder / "file").read_bytes()
    return len(content) == 200_000 and len(set(content)) == 1


def whole_save(folder: Path) -> bool | None:
    """All layers or one."""
    if not (folder / "layers/index.json").exists():
        return None
    return set(load_layers(folder / "layers", "layers")) in ({"a"}, {"a", "b", "c"})


def whole_model(folder: Path) -> bool | None:
    """A model that loads."""
    return bool(outputs(folder / "small")) if (folder / "small/state.safetensors").exists() else None


def whole_fit(folder: Path) -> bool | None:
    """A checkpoint that the fit goes on from: it is stopped at once."""
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
    """A process that is at work."""
    command = [sys.executable, __file__, "--child", name, str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def kills(name: str, times: int, seed: int) -> dict[str, Any]:
    """What processes that are killed at random moments leave behind."""
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
            want = adtn.fit(GEN, TARGET, steps=400, checkpoint=folder / "whole", checkpoint_every=1).history
            row["ends as an uninterrupted one"] = bool(np.array_equal(np.load(folder / "history.npy"), want))
    print(row, file=sys.stderr)
    return row


# --- full disks ---


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path | None]:
    """A folder that holds so many bytes; nothing where the system gives none."""
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
    """Others take what the disk has, but for so many bytes."""

    def fill() -> None:
        with open(disk / "others", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        with open(disk / "others", "r+b") as file:
            file.truncate(max(file.seek(0, 2) - left, 0))

    return fill


def fit_there(disk: Path, fill: Callable[[], None]) -> bool:
    """Whether the result is right although its checkpoint may not fit."""

    def callback(step: int, loss: float) -> None:
        if step == 3:
            fill()

    options = {"callbacks": [callback], "checkpoint": disk / "fit", "checkpoint_every": 2}
    history = adtn.fit(GEN, TARGET, steps=6, **options).history
    return np.array_equal(history, adtn.fit(GEN, TARGET, steps=6).history)


def compress_there(disk: Path, fill: Callable[[], None]) -> bool:
    """Whether the result is there."""
    run_folder(net, QUICK, disk / "small", progress=lambda line: fill())
    return bool(outputs(disk / "small"))


def fit_from_the_command_line(disk: Path, fill: Callable[[], None]) -> bool:
    """Whether the result is there."""
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
    """What becomes of a result whose disk is too small, or fills up while it is made."""
    rng, found = random.Random(f"{seed} {name}"), Counter[str]()
    for _ in range(times):
        size, left = 4096 * rng.randrange(8, 150), 4096 * rng.randrange(6)
        with small_disk(size) as disk, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", OutputWarning)
            if disk is None:
                found["no small disk here"] += 1
                continue
            try:
                right = DISKS[name](disk, filling(disk, left))
            except OutputError as error:
                _, there, rest = str(error).partition("The result is in ")
                kept = Path(rest.partition(" instead")[0]) if there else None
                found["kept elsewhere and named" if kept and kept.exists() else "found before the work"] += 1
                if kept:
                    shutil.rmtree(kept.parent)
            except Exception as error:
                found["lost"] += 1
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            else:
                warned = any(issubclass(w.category, OutputWarning) for w in said)
                found["lost" if not right else "returned, with a warning" if warned else "fitted in"] += 1
    columns = ("fitted in", "found before the work", "returned, with a warning", "kept elsewhere and named", "lost")
    row = {"work": name, "disks": times, **{c: found[c] for c in columns}}
    if found["no small disk here"]:
        row["no small disk here"] = found["no small disk here"]
    print(row, file=sys.stderr)
    return row


def main() -> None:
    """Run all, print counts, write JSON."""
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
            # what is imported and planned on the way is there when the clock starts
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
