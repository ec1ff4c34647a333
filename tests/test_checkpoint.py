"""Checkpoints: a killed fit continues, and ends with the parameters of an uninterrupted one."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn._atomic import write_atomic
from adtn.errors import FileFormatError, FitError
from adtn.optim._fingerprint import fingerprint
from autoray import do

PROGRAM = textwrap.dedent(
    """
    import sys
    import numpy as np
    import adtn

    path, device, optimizer, kill_at, dtype = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
    target = np.sin(np.add.outer(np.arange(32) / 5, np.arange(32) / 7))
    gen = adtn.Generator((32, 32), adtn.TTN(bond=3), layout=adtn.Layout.of((32, 32), 8), scale=target)

    def murder(step, loss):
        if step == kill_at:
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)

    sol = adtn.fit(gen, target, device=device, optimizer=optimizer, steps=60, lr=0.02, dtype=dtype,
                   clip=None if optimizer in ("lbfgs", "lm") else 1.0, checkpoint=path, checkpoint_every=10,
                   callbacks=[murder])
    np.savez(path + ".npz", history=sol.history, loss=sol.loss, steps=sol.steps, **dict(sol.generator.params))
    """
)


def run(path: Path, device: str, optimizer: str, kill_at: int, dtype: str = "float32") -> int:
    command = [sys.executable, "-c", PROGRAM, str(path), device, optimizer, str(kill_at), dtype]
    return subprocess.run(command, capture_output=True, timeout=300).returncode


@pytest.mark.parametrize(
    ("device", "optimizer"),
    [
        ("numpy:cpu", "adam"),
        ("numpy:cpu", "lbfgs"),
        ("torch:cpu", "adam"),
        ("jax:cpu", "adamw"),
    ],
)
def test_killed_and_continued_is_uninterrupted(tmp_path: Path, device: str, optimizer: str) -> None:
    if device != "numpy:cpu":
        pytest.importorskip(device.partition(":")[0])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(whole, device, optimizer, -1) == 0
    # Levenberg-Marquardt converges before the 37th step
    assert run(cut, device, optimizer, 13 if optimizer == "lm" else 37) == -signal.SIGKILL
    assert cut.exists() and not Path(f"{cut}.npz").exists()
    assert run(cut, device, optimizer, -1) == 0
    with np.load(f"{whole}.npz") as a, np.load(f"{cut}.npz") as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            assert np.array_equal(a[name], b[name]), name


def gen_and_target():
    target = np.sin(np.add.outer(np.arange(16) / 5, np.arange(16) / 7))
    return adtn.Generator((16, 16), adtn.TTN(bond=2), layout=adtn.Layout.of((16, 16), 4), scale=target), target


def test_a_finished_fit_is_not_run_again(tmp_path: Path) -> None:
    gen, target = gen_and_target()
    first = adtn.fit(gen, target, steps=20, checkpoint=tmp_path / "c")
    calls: list[int] = []
    again = adtn.fit(gen, target, steps=20, checkpoint=tmp_path / "c", callbacks=[lambda s, _: calls.append(s)])
    assert not calls
    assert again.loss == first.loss
    assert np.array_equal(again.history, first.history)


def test_batches_continue_where_they_were(tmp_path: Path) -> None:
    gen, target = gen_and_target()
    x = np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)

    def loss(w, params, batch):
        r = batch @ (w - target.astype(np.float32)).T + params["b"]
        return np.mean(r * r), (2 * r.T @ batch / r.size, {"b": 2 * r.sum(0) / r.size})

    def task() -> adtn.Task:
        return adtn.Task(
            loss, params={"b": np.zeros(16, np.float32)}, batches=lambda rng: (x[rng.integers(0, 100, 8)],)
        )

    options = {"steps": 40, "checkpoint_every": 10, "seed": 5}
    whole = adtn.fit(gen, task(), checkpoint=tmp_path / "a", **options)
    adtn.fit(gen, task(), checkpoint=tmp_path / "b", callbacks=[lambda s, _: s == 23], **options)
    resumed = adtn.fit(gen, task(), checkpoint=tmp_path / "b", **options)
    assert np.array_equal(resumed.params["b"], whole.params["b"])
    assert np.array_equal(resumed.history[-10:], whole.history[-10:])


def test_another_fits_checkpoint_is_refused(tmp_path: Path) -> None:
    gen, target = gen_and_target()
    adtn.fit(gen, target, steps=5, checkpoint=tmp_path / "c")
    with pytest.raises(FitError, match="belongs to another fit.*delete it"):
        adtn.fit(gen, target * 2, steps=5, checkpoint=tmp_path / "c")
    other = adtn.Generator((16, 16), gen.topology, layout=gen.layout, scale=target, seed=1)
    with pytest.raises(FitError, match="belongs to another fit"):
        adtn.fit(other, target, steps=5, checkpoint=tmp_path / "c")
    with pytest.raises(FitError, match="belongs to another fit"):
        adtn.fit(gen, target, steps=5, lr=0.5, checkpoint=tmp_path / "c")
    (tmp_path / "junk").write_bytes(b"not a checkpoint")
    with pytest.raises(FileFormatError, match="not a checkpoint"):
        adtn.fit(gen, target, steps=5, checkpoint=tmp_path / "junk")
    assert (tmp_path / "junk").read_bytes() == b"not a checkpoint"


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


TASK = """
class Base:
    def scale(self): return {inherited}
class Task(Base):
    "{doc}"
    weight = {attribute}
    def __init__(self): self.rate, self.seen = {setting}, []
    def loss(self, w, *, power={default}): return {constant} * other(w)
    @staticmethod
    def shift(w): return w + {static}
    @classmethod
    def named(cls): return {of_class}
def other(w): return {function} * w
"""
WORDS = ["inherited", "attribute", "setting", "default", "constant", "static", "of_class", "function"]


def task(**changes: int | str) -> Any:
    """Make an object of a user's class."""
    names: dict[str, Any] = {"__name__": "mine"}
    exec(TASK.format(**dict.fromkeys(WORDS, 1) | {"doc": "Text."} | changes), names)
    return names["Task"]()


class OfADictionary:
    """An object that looks every attribute up in a dictionary, as in some libraries, and raises what that raises."""

    def __init__(self, **values: Any) -> None:
        object.__setattr__(self, "_values", values)

    def __getattr__(self, name: str) -> Any:
        return object.__getattribute__(self, "_values")[name]


def test_objects_whose_attributes_raise_other_errors_have_a_fingerprint() -> None:
    assert fingerprint(OfADictionary(a=1)) == fingerprint(OfADictionary(a=1)) != fingerprint(OfADictionary(a=2))


def test_a_fingerprint_depends_on_the_code_of_a_class_and_not_on_its_docstring() -> None:
    mark = fingerprint(task())
    assert mark == fingerprint(task()) == fingerprint(task(doc="Other text."))
    used = task()
    used.seen.append(7)
    assert mark == fingerprint(used), "a log is not a setting"
    others = [fingerprint(task(**{word: 2})) for word in WORDS]
    assert len({mark, *others}) == 1 + len(WORDS)


def test_a_mark_does_not_depend_on_what_was_computed_before() -> None:
    def loss(w):
        return do("sum", do("tanh", w))

    before = fingerprint(loss)
    do("sum", do("nan_to_num", np.ones(3)))  # autoray remembers, in its module, which function that is
    do("arctan2", np.ones(3), np.ones(3))
    assert fingerprint(loss) == before


class Doubled:
    def __call__(self, w):
        return w * self.factor

    @property
    def factor(self):
        return 2.0

    @functools.cached_property
    def cached(self):
        return 2.0

    @staticmethod
    def static():
        return 2.0

    @classmethod
    def of_class(cls):
        return 2.0

    power = functools.partialmethod(__call__, 2.0)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("factor", property(lambda self: 3.0)),
        ("cached", functools.cached_property(lambda self: 3.0)),
        ("static", staticmethod(lambda: 3.0)),
        ("of_class", classmethod(lambda cls: 3.0)),
        ("power", functools.partialmethod(Doubled.__call__, 3.0)),
        ("__call__", lambda self, w: w * 3.0),
    ],
)
def test_a_fingerprint_depends_on_every_kind_of_member(name: str, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(Doubled())
    assert fingerprint(Doubled()) == before
    monkeypatch.setattr(Doubled, name, other)
    assert fingerprint(Doubled()) != before
