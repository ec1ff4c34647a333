"""Fixtures that run a test through the table of ``table.py``."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from table import BACKENDS, TOPOLOGIES, Row, usable

settings.register_profile(
    "adtn", deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("adtn")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """No plan depends on what was calibrated on this machine, and nothing is left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADTN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest) -> str:
    """Every device of the table."""
    return usable(request.param)


@pytest.fixture(params=[(key, dtype) for key, (_, dtypes) in BACKENDS.items() for dtype in dtypes], ids="-".join)
def device_dtype(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Every device with every dtype it has."""
    key, dtype = request.param
    return usable(key), dtype


@pytest.fixture(params=TOPOLOGIES)
def row(request: pytest.FixtureRequest) -> Row:
    """Every topology of the table."""
    return TOPOLOGIES[request.param]
