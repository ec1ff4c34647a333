"""Checkpoints of a fit: everything that the next step depends on, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._atomic import write_atomic
from .._errors import FileFormatError, FitError

_KEY = "adtn.checkpoint"
_NUMBERS = ("step", "best_loss", "best_step", "exact")


@dataclass
class Checkpoint:
    """State of a fit before step ``step``.

    Parameters
    ----------
    step : int
        Next step.
    params, best, moments : dict of str to numpy.ndarray
        Current parameters, best parameters, optimizer state.
    history : list of float
        Losses so far.
    best_loss : float
        Loss of ``best``.
    best_step : int
        When it was reached.
    exact : bool
        Whether the loss had become too small for sums that cancel.
    """

    step: int
    params: dict[str, np.ndarray]
    best: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]
    history: list[float]
    best_loss: float
    best_step: int
    exact: bool = False


def fingerprint(*parts: object) -> str:
    """A digest of everything that must be the same when a fit goes on."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(str((part.shape, str(part.dtype))).encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
        digest.update(b"|")
    return digest.hexdigest()


def write_checkpoint(path: str | os.PathLike[str], state: Checkpoint, mark: str) -> None:
    """Write a checkpoint; a kill at any moment leaves the old or the new one."""
    from safetensors.numpy import save

    groups = {"params": state.params, "best": state.best, "moments": state.moments}
    tensors = {f"{group}/{name}": np.array(x, order="C") for group, xs in groups.items() for name, x in xs.items()}
    tensors["history"] = np.asarray(state.history, dtype=np.float64)
    meta = {name: getattr(state, name) for name in _NUMBERS} | {"mark": mark}
    write_atomic(path, save(tensors, {_KEY: json.dumps(meta)}))


def read_checkpoint(path: str | os.PathLike[str], mark: str) -> Checkpoint | None:
    """The checkpoint at ``path``, ``None`` when there is none yet.

    Raises
    ------
    FitError
        If it belongs to another fit.
    FileFormatError
        If it is not a checkpoint.
    """
    from safetensors import safe_open

    if not Path(path).exists():
        return None
    try:
        with safe_open(str(path), framework="numpy") as file:  # pyright: ignore[reportGeneralTypeIssues]
            meta = json.loads(file.metadata()[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:
        raise FileFormatError(
            f"{path} is not a checkpoint of adtn ({error}); delete it or choose another name."
        ) from error
    if meta["mark"] != mark:
        raise FitError(
            f"{path} belongs to another fit (generator, target, optimizer or schedule differ); "
            "delete it to start anew, or choose another name."
        )
    groups: dict[str, dict[str, np.ndarray]] = {"params": {}, "best": {}, "moments": {}}
    for key, x in tensors.items():
        group, _, name = key.partition("/")
        if group in groups:
            groups[group][name] = x
    return Checkpoint(history=tensors["history"].tolist(), **groups, **{name: meta[name] for name in _NUMBERS})
