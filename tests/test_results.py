"""Pages of results are those of the JSON beside them."""

from __future__ import annotations

import importlib.util
import json
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
