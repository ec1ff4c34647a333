"""The data sets MNIST, CIFAR-10 and CIFAR-100, from ``ADTN_DATA`` or downloaded and verified.

Run as ``python bench/networks/data.py mnist cifar10 cifar100`` to download missing files.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import os
import tarfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from adtn._atomic import write_atomic
from adtn.device import cache_dir
from adtn.errors import ADTNError


@dataclass(frozen=True)
class Remote:
    """A file to download, with its address and the MD5 that its authors published."""

    name: str
    url: str
    md5: str


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
REMOTES: Mapping[str, tuple[Remote, ...]] = {
    "mnist": (
        Remote("train-images-idx3-ubyte.gz", _MNIST, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        Remote("train-labels-idx1-ubyte.gz", _MNIST, "d53e105ee54ea40749a09fcbcd1e9432"),
        Remote("t10k-images-idx3-ubyte.gz", _MNIST, "9fb629c4189551a2d022fa330f9573f3"),
        Remote("t10k-labels-idx1-ubyte.gz", _MNIST, "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "cifar10": (Remote("cifar-10-binary.tar.gz", _CIFAR, "c32a1d4ab5d03f1284b67883e8d87530"),),
    "cifar100": (Remote("cifar-100-binary.tar.gz", _CIFAR, "03b5dce01913d631647c71ecec9e9cb8"),),
}


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set: uint8 images ``(n, channels, height, width)``, and int64 labels."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.y_train.max()) + 1


def load(name: str) -> Images:
    """Load a data set from ``ADTN_DATA``, or from downloaded files.

    Raises
    ------
    ADTNError
        If the name is unknown, or the files are in neither place.
    """
    if name not in REMOTES:
        raise ADTNError(f"Got data={name!r}; expected one of {', '.join(REMOTES)}.")
    external = Path(os.environ["ADTN_DATA"]) / name if os.environ.get("ADTN_DATA") else None
    downloaded = cache_dir() / "data" / name
    if external is not None and (external / "load_cifar.py").exists():
        return _packed(name, external, downloaded)
    for folder in (external, downloaded):
        if folder is not None and (folder / REMOTES[name][0].name).exists():
            return _mnist(folder) if name == "mnist" else _cifar(name, folder / REMOTES[name][0].name)
    raise ADTNError(
        f"Found {name} neither in ADTN_DATA ({external}) nor in {downloaded}; run 'python bench/networks/data.py "
        f"{name}' on a machine with a network."
    )


def download(remote: Remote, folder: Path) -> Path:
    """Download one file, and write it only if it is intact.

    Raises
    ------
    ADTNError
        If the file cannot be downloaded, or its MD5 is wrong; nothing is written then.
    """
    path = folder / remote.name
    if path.exists() and _md5(path.read_bytes()) == remote.md5:
        return path
    try:
        with urllib.request.urlopen(remote.url + remote.name, timeout=60) as reply:
            content = reply.read()
    except OSError as error:
        raise ADTNError(f"Cannot download {remote.url}{remote.name} ({error}); is there a network?") from error
    if _md5(content) != remote.md5:
        raise ADTNError(
            f"Got {remote.name} with MD5 {_md5(content)} ({len(content):,} bytes); expected {remote.md5}. The download "
            "was interrupted or the file was changed; nothing was written, so try again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _mnist(folder: Path) -> Images:
    def read(remote: Remote, offset: int) -> np.ndarray:
        return np.frombuffer(bytearray(gzip.decompress((folder / remote.name).read_bytes())), np.uint8, offset=offset)

    x_train, y_train, x_test, y_test = (read(r, 16 - 8 * (n % 2)) for n, r in enumerate(REMOTES["mnist"]))
    images = (x.reshape(-1, 1, 28, 28) for x in (x_train, x_test))
    return Images(
        name="mnist",
        x_train=next(images),
        y_train=y_train.astype(np.int64),
        x_test=next(images),
        y_test=y_test.astype(np.int64),
    )


def _cifar(name: str, archive: Path) -> Images:
    """Read the official binary files: one or two bytes of labels, then 3072 of the image."""
    labels = 1 if name == "cifar10" else 2
    parts: dict[bool, list[np.ndarray]] = {False: [], True: []}
    with tarfile.open(archive) as tar:
        for member in sorted((m for m in tar if m.name.endswith(".bin")), key=lambda m: m.name):
            file = tar.extractfile(member)
            if file is not None:
                rows = np.frombuffer(file.read(), np.uint8).reshape(-1, labels + 3072)
                parts["test" in Path(member.name).name].append(rows)
    train, test = (np.concatenate(parts[kind]) for kind in (False, True))
    x = [rows[:, labels:].reshape(-1, 3, 32, 32) for rows in (train, test)]
    y = [rows[:, labels - 1].astype(np.int64) for rows in (train, test)]
    return Images(name=name, x_train=x[0], y_train=y[0], x_test=x[1], y_test=y[1])


def _packed(name: str, folder: Path, cache: Path) -> Images:
    """Read a folder that contains its own loader, and cache the decoded images."""
    spec = importlib.util.spec_from_file_location("load_cifar", folder / "load_cifar.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cache.mkdir(parents=True, exist_ok=True)
    arrays = module.load(str(folder), cache=str(cache / "decoded.npz"))
    x_train, x_test = (np.ascontiguousarray(arrays[k].transpose(0, 3, 1, 2)) for k in ("x_train", "x_test"))
    return Images(
        name=name,
        x_train=x_train,
        y_train=arrays["y_train"].astype(np.int64),
        x_test=x_test,
        y_test=arrays["y_test"].astype(np.int64),
    )


def main() -> None:
    """Download missing files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(REMOTES))
    for name in parser.parse_args().names:
        for remote in REMOTES[name]:
            print(download(remote, cache_dir() / "data" / name))


if __name__ == "__main__":
    main()
