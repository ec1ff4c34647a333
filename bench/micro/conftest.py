"""Which devices the suites run on."""

from __future__ import annotations

import adtn
import pytest


@pytest.fixture(params=[d.name for d in adtn.devices().usable])
def device(request: pytest.FixtureRequest) -> str:
    """Every usable device."""
    return request.param
