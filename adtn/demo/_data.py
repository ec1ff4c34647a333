"""Image data sets: 8x8 digits that come with the package, or MNIST from the folder ``ADTN_DATA``.

The digits are the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak 1998, UCI
Machine Learning Repository, CC BY 4.0), as scikit-learn bundles it.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from ..errors import ADTNError

_MNIST = {
    "x_train": ("train-images-idx3-ubyte.gz", 16),
    "y_train": ("train-labels-idx1-ubyte.gz", 8),
    "x_test": ("t10k-images-idx3-ubyte.gz", 16),
    "y_test": ("t10k-labels-idx1-ubyte.gz", 8),
}


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set of flattened float32 images with values from 0 to 1, and labels from 0 to 9.

    Parameters
    ----------
    name : str
        Name of the data set.
    side : int
        Images are ``side x side``.
    x_train, y_train, x_test, y_test : numpy.ndarray
        Images and labels for training and testing.
    """

    name: str
    side: int
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_images(name: str) -> Images:
    """Load a data set.

    Parameters
    ----------
    name : {"digits", "mnist"}
        Name of the data set.

    Raises
    ------
    ADTNError
        If the name is unknown, or MNIST is not in the folder ``ADTN_DATA``.
    """
    if name == "digits":
        return _digits()
    if name == "mnist":
        return _mnist()
    raise ADTNError(f"Got data={name!r}; expected 'digits' or 'mnist'.")


def _digits() -> Images:
    with (files("adtn.demo") / "digits.npz").open("rb") as file, np.load(file) as data:
        x, y = data["images"].astype(np.float32) / 16.0, data["labels"].astype(np.int64)
    order = np.random.Generator(np.random.Philox(key=np.array([0, 1797], dtype=np.uint64))).permutation(len(x))
    x, y = x[order], y[order]
    return Images(name="digits", side=8, x_train=x[:1437], y_train=y[:1437], x_test=x[1437:], y_test=y[1437:])


def _mnist() -> Images:
    root = os.environ.get("ADTN_DATA")
    if not root:
        raise ADTNError(
            "MNIST is read from the folder ADTN_DATA, which is not set. Set it to a folder with mnist/*.gz (the four "
            "original idx files), or use --data digits, which needs no files."
        )
    arrays: dict[str, np.ndarray] = {}
    for key, (name, offset) in _MNIST.items():
        path = Path(root) / "mnist" / name
        try:
            with gzip.open(path) as file:
                arrays[key] = np.frombuffer(file.read(), np.uint8, offset=offset)
        except OSError as error:
            raise ADTNError(f"Cannot read {path} ({error}); expected the original idx file.") from error
    x_train, x_test = (arrays[k].reshape(-1, 784).astype(np.float32) / 255.0 for k in ("x_train", "x_test"))
    y_train, y_test = (arrays[k].astype(np.int64) for k in ("y_train", "y_test"))
    return Images(name="mnist", side=28, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
