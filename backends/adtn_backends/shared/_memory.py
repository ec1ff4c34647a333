"""The memory of the host, for devices that use it."""

from __future__ import annotations

import os


def host_memory_bytes() -> int | None:
    """Return the physical memory of this machine in bytes, ``None`` where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
