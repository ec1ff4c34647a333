"""A description of the machine on which a result was measured."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .._version import __version__

_PACKAGES = (
    "numpy",
    "scipy",
    "torch",
    "jax",
    "quimb",
    "cotengra",
    "autoray",
    "optax",
    "tensorly-torch",
    "tensorkrowch",
)


def machine() -> dict[str, Any]:
    """Describe the system, its processors and the versions of packages."""
    versions: dict[str, str] = {"adtn": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "system": platform.platform(terse=True),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "versions": versions,
    }
