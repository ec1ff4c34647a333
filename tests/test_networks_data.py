"""Downloads of the benchmark's data are verified before they are written."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adtn.errors import ADTNError

SCRIPT = Path(__file__).parents[1] / "bench" / "networks" / "data.py"


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    if not SCRIPT.exists():
        pytest.skip("bench/ is not present")
    spec = importlib.util.spec_from_file_location("networks_data", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "networks_data", module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("ADTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ADTN_DATA", raising=False)
    return module


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder, and return it with its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{http.server_port}/"
    http.shutdown()
    thread.join()
    http.server_close()


def remote(module: Any, name: str, url: str, content: bytes) -> Any:
    return module.Remote(name, url, hashlib.md5(content, usedforsecurity=False).hexdigest())


def test_a_file_is_fetched_once(data: Any, server: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = server
    (folder / "a.gz").write_bytes(b"content")
    wanted = remote(data, "a.gz", url, b"content")
    path = data.download(wanted, tmp_path / "out")
    assert path.read_bytes() == b"content"
    (folder / "a.gz").unlink()
    assert data.download(wanted, tmp_path / "out") == path


@pytest.mark.parametrize("served", [b"conten", b"Content", None])
def test_truncated_altered_or_missing_downloads_are_not_stored(
    served: bytes | None, data: Any, server: tuple[Path, str], tmp_path: Path
) -> None:
    folder, url = server
    if served is not None:
        (folder / "a.gz").write_bytes(served)
    with pytest.raises(ADTNError, match="nothing was written" if served is not None else "Cannot download"):
        data.download(remote(data, "a.gz", url, b"content"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_official_files_are_read(data: Any, server: tuple[Path, str], tmp_path: Path, monkeypatch: Any) -> None:
    folder, url = server
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 28, 28), dtype=np.uint8)
    labels = np.array([1, 9, 0, 3], np.uint8)
    contents = {
        r.name: gzip.compress(bytes(16 - 8 * (n % 2)) + (labels if n % 2 else images).tobytes())
        for n, r in enumerate(data.REMOTES["mnist"])
    }
    cifar = rng.integers(0, 10, (6, 3073), dtype=np.uint8)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, rows in [
            ("b/data_batch_1.bin", cifar[:2]),
            ("b/data_batch_2.bin", cifar[2:4]),
            ("b/test_batch.bin", cifar[4:]),
        ]:
            info = tarfile.TarInfo(name)
            info.size = rows.nbytes
            tar.addfile(info, io.BytesIO(rows.tobytes()))
    contents["cifar-10-binary.tar.gz"] = packed.getvalue()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    monkeypatch.setattr(
        data,
        "REMOTES",
        {k: tuple(remote(data, r.name, url, contents[r.name]) for r in data.REMOTES[k]) for k in ("mnist", "cifar10")},
    )
    with pytest.raises(ADTNError, match="run 'python bench/networks/data.py mnist'"):
        data.load("mnist")
    monkeypatch.setattr(sys, "argv", ["data.py", "mnist", "cifar10"])
    data.main()
    mnist, cifar10 = data.load("mnist"), data.load("cifar10")
    assert np.array_equal(mnist.x_train[:, 0], images) and np.array_equal(mnist.y_test, labels)
    assert np.array_equal(cifar10.x_train.reshape(4, -1), cifar[:4, 1:]) and np.array_equal(
        cifar10.y_test, cifar[4:, 0]
    )
    with pytest.raises(ADTNError, match="expected one of"):
        data.load("svhn")
