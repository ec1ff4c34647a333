"""Memory of the host, for the devices that live in it."""

from __future__ import annotations

import os


def host_memory_bytes() -> int | None:
    """Physical memory of this machine, ``None`` where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
