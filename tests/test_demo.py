"""The demo: the gradient of its network, its table, its files, and MNIST if it is present."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import adtn
import numpy as np
import pytest
from adtn.demo import draw, run_demo, tables, verdict
from adtn.demo._cases import PROBLEMS, cases_for
from adtn.demo._data import load_images
from adtn.demo._mlp import MLP


def test_digits_come_with_the_package() -> None:
    data = load_images("digits")
    assert data.x_train.shape == (1437, 64) and data.x_test.shape == (360, 64)
    assert data.x_train.min() >= 0 and data.x_train.max() == 1
    assert np.bincount(np.concatenate([data.y_train, data.y_test])).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]


@pytest.mark.parametrize("replaced", [0, 1, 2])
def test_gradient_of_the_network_is_torch_autograd(replaced: int) -> None:
    torch = pytest.importorskip("torch")
    mlp = MLP((6, 8, 7, 5), replaced)
    rng = np.random.default_rng(0)
    weight = torch.tensor(rng.standard_normal(mlp.generated_shape), requires_grad=True)
    params = {k: torch.tensor(x.astype(np.float64) + 0.1, requires_grad=True) for k, x in mlp.initial(0).items()}
    x, labels = torch.tensor(rng.standard_normal((9, 6))), rng.integers(0, 5, 9)
    weights = [weight if k == replaced else params[f"weight{k}"] for k in range(3)]
    h = x
    for k in range(3):
        h = h @ weights[k].T + params[f"bias{k}"]
        h = torch.relu(h) if k < 2 else h
    want = torch.nn.functional.cross_entropy(h, torch.tensor(labels))
    grads = torch.autograd.grad(want, [weight, *params.values()])
    with torch.no_grad():
        loss, (wbar, rest) = mlp.loss(weight, params, x, torch.eye(5, dtype=torch.float64)[labels])
    assert loss.item() == pytest.approx(want.item())
    torch.testing.assert_close(wbar, grads[0])
    for (name, _), grad in zip(params.items(), grads[1:], strict=True):
        torch.testing.assert_close(rest[name], grad)


def test_cases_are_within_the_budget() -> None:
    hidden, first = (cases_for(p, 0) for p in PROBLEMS["mnist"])
    for case in hidden:
        if not case.is_control:
            assert case.generator(0).num_params <= 1048, case.name
    for case in first:
        if not case.is_control:
            assert case.generator(0).num_params <= 803, case.name
    controls = [case.generator(0).num_params for case in hidden if case.is_control]
    assert controls == [1024 * 1024, 1, 1]


def test_a_short_demo(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    seen: list[str] = []
    report = run_demo("digits", devices=["numpy:cpu"], steps=30, out=tmp_path, on_result=lambda r: seen.append(r.case))
    cases = {
        "dense",
        "scaled identity",
        "frozen random",
        "TTN",
        "aTTN",
        "MERA",
        "brick wall",
        "MPO",
        "Tucker",
    }
    assert cases <= set(seen)
    assert all(r.accuracy > 10 for r in report.results)
    for r in report.results:
        assert r.bytes > 0 and r.ratio == r.entries / r.params
    from rich.console import Console

    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for table in tables(report):
        console.print(table)
    text = console.export_text()
    assert "frozen random" in text and "scaled identity" in text and "numpy:cpu" in text
    console.file.close()
    assert len(verdict(report)) == 2
    draw(report, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
    content = json.loads((tmp_path / "demo-digits.json").read_text())
    assert len(content["results"]) == len(report.results)
    assert content["machine"]["versions"]["numpy"] == np.__version__
    saved = adtn.load(tmp_path / "hidden-layer-256x256-TTN.safetensors")
    assert np.array_equal(saved.weight(), report.weights["hidden layer 256x256", "TTN"])


def test_the_demo_says_the_same_on_every_backend(device: str) -> None:
    want = run_demo("digits", devices=["numpy:cpu"], steps=20, only=["TTN", "frozen random"])
    got = run_demo("digits", devices=[device], steps=20, only=["TTN", "frozen random"])
    assert {r.case for r in want.results} == {"TTN", "frozen random"}
    for a, b in zip(want.results, got.results, strict=True):
        np.testing.assert_allclose(a.history, b.history, rtol=1e-2)


def test_mnist_is_read_from_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read files in the format of LeCun, Cortes and Burges: big-endian counts and sides, then bytes, image by image."""
    (tmp_path / "mnist").mkdir()
    rng = np.random.default_rng(0)
    images, labels = {}, {}
    for part, n in (("train", 3), ("t10k", 2)):
        images[part] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels[part] = rng.integers(0, 10, n, dtype=np.uint8)
        for name, magic, values in (("images-idx3", 2051, images[part]), ("labels-idx1", 2049, labels[part])):
            head = np.array([magic, *values.shape], dtype=">i4").tobytes()
            (tmp_path / "mnist" / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    monkeypatch.setenv("ADTN_DATA", str(tmp_path))
    data = load_images("mnist")
    for part, x, y in (("train", data.x_train, data.y_train), ("t10k", data.x_test, data.y_test)):
        assert x.dtype == np.float32 and y.dtype == np.int64
        np.testing.assert_allclose(x, images[part].reshape(len(x), -1) / 255.0, rtol=1e-6)
        assert y.tolist() == labels[part].tolist()
    assert (data.name, data.side) == ("mnist", 28)


def test_mnist() -> None:
    if not os.environ.get("ADTN_DATA"):
        pytest.skip("ADTN_DATA is not set: no MNIST")
    data = load_images("mnist")
    assert data.x_train.shape == (60000, 784) and data.x_test.shape == (10000, 784)
    report = run_demo("mnist", devices=["numpy:cpu"], steps=25, only=["random features"])
    assert report.results[0].params == 616
    assert report.results[0].accuracy > 70
