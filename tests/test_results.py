"""Pages of results agree with the JSON files from which they are written."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def script(name: str) -> Any:
    path = ROOT / "bench" / name
    if not path.exists():
        pytest.skip("bench/ is not present")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_benchmarks() -> None:
    tables = script("tables.py")
    for path in tables.RESULTS.glob("*.json"):
        assert tables.table_of(json.loads(path.read_text())), path
    assert tables.page() == (tables.RESULTS / "README.md").read_text(), "run 'python bench/tables.py'"


def test_networks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = script("networks/table.py")
    assert table.page(tmp_path) == (table.DOCS / "results.md").read_text(), "run 'python bench/networks/table.py'"
    assert list(tmp_path.glob("*.png"))


def test_a_method_that_has_nothing_smaller_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(ROOT / "bench" / "networks")
    for name in ("data", "dense", "methods", "train"):  # as other modules may have the same names
        monkeypatch.delitem(sys.modules, name, raising=False)
    run = script("networks/run.py")
    for name in ("data", "dense", "methods", "train"):
        monkeypatch.delitem(sys.modules, name)
    ratios = [4, 64, 500, 1000]
    case = {"methods": {"mpo": {"topology": {"name": "mpo"}}}, "ratios": ratios, "replaced": ["0"]}
    tail = torch.nn.Sequential(torch.nn.Linear(64, 64))
    options = run.variants(case)
    sizes = [run.replace(copy.deepcopy(tail), case, method, 0)["0"]["params"] for method in options.values()]
    kept = run.distinct(case, tail, list(options))
    assert sizes[-1] == sizes[-2]
    assert kept == [name for n, name in enumerate(options) if n == 0 or sizes[n] != sizes[n - 1]]


def test_a_slower_checkout_is_seen_and_an_equal_one_is_not() -> None:
    verdict = {}
    rng = np.random.default_rng(1)
    for ratio in (1.0, 1.1):
        noise = np.exp(0.05 * rng.standard_normal((30, 2)))
        found = script("house.py").statistics((noise * [1.0, ratio]).tolist())
        assert found["low"] <= found["ratio"] <= found["high"]
        assert found["ratio"] == pytest.approx(ratio, rel=0.05)
        verdict[ratio] = found["verdict"]
    assert verdict == {1.0: "ok", 1.1: "slower"}


def test_turns_are_mirrored() -> None:
    order: list[str] = []
    pairs = script("house.py").in_turns(4, 0, lambda side: order.append(side) or len(order))
    assert "".join(side[0] for side in order) == "baabbaab"
    assert pairs == [[1, 2], [4, 3], [5, 6], [8, 7]]


def test_a_worker_has_the_entry_points_of_its_own_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "adtn").mkdir(parents=True)
    (checkout / "adtn" / "_version.py").write_text('"""Of a fake."""\n\n__version__ = "0.0.7"\n')
    (checkout / "pyproject.toml").write_text(
        '[project]\nname = "adtn"\n[project.entry-points."adtn.backends"]\nnumpy = "other.place:Thing"\n'
    )
    side = script("house.py").Side(checkout, tmp_path / "scratch")
    code = (
        "from importlib.metadata import entry_points as e, version; "
        "print(version('adtn'), *((x.name, x.value) for x in e(group='adtn.backends')))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], env=side.env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.0.7 ('numpy', 'other.place:Thing')"


def test_the_best_single_method_takes_no_more_bytes() -> None:
    plot = script("compress/plot.py")

    def row(method: str, ratio: float | None, found: float, accuracy: float) -> dict[str, Any]:
        size = {"ratio": ratio, "ratio of bytes": found, "unit": "bytes", "steps": 0}
        return {"method": method, **size, "quality": {"accuracy": accuracy}, "standard errors": {"accuracy": 0.1}}

    rows = [
        row("dense", None, 1.0, 90.0),
        row("int4/32", None, 6.9, 88.0),
        row("low rank", 4.0, 4.01, 87.0),
        row("low rank", 8.0, 8.02, 70.0),
        row("automatic", 4.0, 4.0, 88.05),
        row("automatic", 8.0, 8.0, 69.0),
        row("fixed length", 8.0, 8.0, 68.5),
        {"method": "spatial", "ratio": 32.0, "unit": "bytes", "steps": 0, "failed": "too small"},
    ]
    assert plot.envelope(rows[1:4]) == [(4.01, 88.0), (6.9, 88.0), (8.02, 70.0)]
    lines = plot.table({"compress_models": rows})
    assert "| 4x | 88.05 ± 0.10 | not run | 88.00 | int4/32, 6.9x | +0.05 | level |" in lines
    assert "| 8x | 69.00 ± 0.10 | 68.50 | 70.00 | low rank, 8.0x | -1.00 | **below** |" in lines
