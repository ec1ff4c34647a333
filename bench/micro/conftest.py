"""The devices on which the suites run."""

from __future__ import annotations

import adtn
import pytest


@pytest.fixture(params=[d.name for d in adtn.devices().usable])
def device(request: pytest.FixtureRequest) -> str:
    """Run a test on every usable device."""
    return request.param
