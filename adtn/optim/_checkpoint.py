"""Checkpoints of a fit: everything that the next step depends on, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._atomic import write_atomic
from .._files import KEY, header_text, metadata_of, read_header, read_whole, sealed
from ..errors import FileFormatError, FitError

FORMAT = 2
_KIND = "checkpoint of a fit"
_OLD_KEY = "adtn.checkpoint"  # in the first format, which has no digest
_NUMBERS = ("step", "best_loss", "best_step", "exact")


@dataclass(kw_only=True)
class Checkpoint:
    """The state of a fit before step ``step``.

    Parameters
    ----------
    step : int
        The next step.
    params, best, moments : dict of str to numpy.ndarray
        Current parameters, best parameters, optimizer state.
    history : list of float
        Losses so far.
    best_loss : float
        Loss of ``best``.
    best_step : int
        The step at which it was reached.
    exact : bool
        Whether the loss is so small that residuals must be formed, as sums would cancel.
    """

    step: int
    params: dict[str, np.ndarray]
    best: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]
    history: list[float]
    best_loss: float
    best_step: int
    exact: bool = False


def write_checkpoint(path: str | os.PathLike[str], state: Checkpoint, mark: str) -> None:
    """Write a checkpoint atomically; an interruption leaves the old or the new one."""
    from safetensors.numpy import save

    groups = {"params": state.params, "best": state.best, "moments": state.moments}
    tensors = {f"{group}/{name}": np.array(x, order="C") for group, xs in groups.items() for name, x in xs.items()}
    tensors["history"] = np.asarray(state.history, dtype=np.float64)
    meta: dict[str, Any] = {name: getattr(state, name) for name in _NUMBERS} | {"mark": mark}
    write_atomic(path, sealed(save(tensors, {KEY: header_text(_KIND, FORMAT, **meta)})))


def read_checkpoint(
    path: str | os.PathLike[str],
    mark: str,
    former_mark: Callable[[], str] = lambda: "",
    old_mark: Callable[[], str | None] = lambda: None,
) -> Checkpoint | None:
    """Read the checkpoint at ``path``; ``None`` if there is none yet.

    Parameters
    ----------
    path : path
    mark : str
        The fingerprint of the fit that continues.
    former_mark : callable
        A function that returns the fingerprint of older checkpoints of this format for that fit.
    old_mark : callable
        A function that returns the fingerprint of the first format; empty if that does not identify the fit.

    Raises
    ------
    FitError
        If the checkpoint belongs to another fit.
    FileFormatError
        If the file is not a checkpoint, or was modified.
    """
    from safetensors.numpy import load

    if not Path(path).exists():
        return None
    try:
        data = read_whole(path, "a checkpoint of a fit")
        meta = read_header(data, _KIND, FORMAT)
        is_first_format = meta is None
        if meta is None:
            meta = _old_header(data)
        tensors: dict[str, np.ndarray] = load(data)
        groups: dict[str, dict[str, np.ndarray]] = {"params": {}, "best": {}, "moments": {}}
        for key, x in tensors.items():
            group, _, name = key.partition("/")
            if group in groups:
                groups[group][name] = x
        history = tensors["history"].tolist()
        state = Checkpoint(history=history, **groups, **{name: meta[name] for name in _NUMBERS})
        written_mark = meta["mark"]
    except Exception as error:  # a header may contain anything
        raise FileFormatError(
            f"{path} is not a checkpoint of adtn, or it is damaged ({error}); delete it or choose another name."
        ) from error
    if is_first_format:
        belongs = written_mark == (old_mark() or "none")
    else:
        belongs = written_mark == mark or written_mark == former_mark()
    if not belongs:
        raise FitError(
            f"{path} belongs to another fit (generator, target or objective with its data, optimizer or schedule "
            "differ); delete it to start again, or choose another name."
        )
    return state


def _old_header(data: bytes) -> dict[str, Any]:
    return json.loads(metadata_of(data)[_OLD_KEY])


def first_fingerprint(*parts: object) -> str:
    """Compute the fingerprint of the first format."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(str((part.shape, str(part.dtype))).encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
        digest.update(b"|")
    return digest.hexdigest()
