"""Fixtures that run a test through the table of ``table.py``."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from table import BACKENDS, REQUIRED, TOPOLOGIES, Row, usable

# modules that no skip may report as missing, as renaming one of our modules would silence a whole file
NEVER_MISSING = ["adtn", "adtn_backends"]
for _name in REQUIRED:
    NEVER_MISSING += {"torch": ["torch"], "jax": ["jax", "flax", "optax"]}.get(_name, [])

settings.register_profile(
    "adtn", deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("adtn")


def _refuse_wrong_skip(report: Any) -> None:
    """Turn a skip into a failure if the missing module is one that must exist."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    found = re.search(r"could not import '(\w+)", reason)
    if found and found[1] in NEVER_MISSING:
        report.outcome, report.longrepr = "failed", f"{reason}: no reason for a skip here"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Check the skips of whole files."""
    report = yield
    _refuse_wrong_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Check the skips of single tests."""
    report = yield
    _refuse_wrong_skip(report)
    return report


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Use an empty cache, so that plans do not depend on calibrations of this machine, and nothing is left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADTN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest) -> str:
    """Run a test on every device of the table."""
    return usable(request.param)


@pytest.fixture(params=[(key, dtype) for key, (_, dtypes) in BACKENDS.items() for dtype in dtypes], ids="-".join)
def device_dtype(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Run a test on every device with every dtype that it supports."""
    key, dtype = request.param
    return usable(key), dtype


@pytest.fixture(params=TOPOLOGIES)
def row(request: pytest.FixtureRequest) -> Row:
    """Run a test with every topology of the table."""
    return TOPOLOGIES[request.param]
