"""Pages of results are those of the JSON beside them."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def script(name: str) -> Any:
    path = ROOT / "bench" / name
    if not path.exists():
        pytest.skip("bench/ is not here")
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
    for name in ("data", "dense", "methods", "train"):  # names of others may be the same
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
