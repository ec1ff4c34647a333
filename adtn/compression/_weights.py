"""Weights from a user's own files: ``.npy``, ``.npz`` and ``.safetensors``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import FileFormatError
from ._storage import read_tensors


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read every array of a file by name.

    Parameters
    ----------
    path : path
        ``.npy`` (one array, named after the file), ``.npz`` or ``.safetensors``.

    Returns
    -------
    dict of str to numpy.ndarray

    Raises
    ------
    FileFormatError
        If the file is none of these, cannot be read, or contains pickled objects.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            return {path.stem: np.load(path, allow_pickle=False)}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        if path.suffix == ".safetensors":
            return read_tensors(path.read_bytes())
    except FileFormatError:
        raise
    except Exception as error:
        raise FileFormatError(
            f"Cannot read {path} ({error}). Expected plain arrays without pickled objects."
        ) from error
    raise FileFormatError(f"Got {path.name}; expected a .npy, .npz or .safetensors file.")


def pick_weight(path: str | os.PathLike[str], key: str | None) -> tuple[str, np.ndarray]:
    """Read one array of a file: the named one, or the only one with 1 to 5 axes and more than one entry.

    Raises
    ------
    FileFormatError
        If there is no such array, or several and no name is given.
    """
    arrays = read_weights(path)
    if key is not None:
        if key not in arrays:
            raise FileFormatError(f"{path} has no array {key!r}; it has {', '.join(arrays)}.")
        return key, arrays[key]
    real = {k: x for k, x in arrays.items() if np.issubdtype(x.dtype, np.floating) and 1 <= x.ndim <= 5 and x.size > 1}
    if len(real) != 1:
        names = ", ".join(f"{k} {x.shape}" for k, x in real.items()) or "none"
        raise FileFormatError(f"{path} has {len(real)} weights ({names}); choose one with --key.")
    return next(iter(real.items()))
