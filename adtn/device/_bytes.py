"""Human-readable memory sizes."""

from __future__ import annotations

import re
from typing import Annotated

from .._checks import Range, checked
from ..errors import ScheduleError

Memory = Annotated[str | Annotated[int, Range(0)] | None, "a number of bytes, or a size such as '512MiB' or '2GB'"]


@checked(ScheduleError)
def parse_bytes(memory: Memory) -> int | None:
    """Convert a size such as ``"512MiB"`` to a number of bytes.

    Raises
    ------
    ScheduleError
        If the size cannot be parsed.
    """
    if memory is None or isinstance(memory, int):
        return memory
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([KMGT]?)(i?)B?\s*", memory, re.IGNORECASE)
    if match is None:
        raise ScheduleError(f"Got memory={memory!r}; expected a number of bytes, or a size such as '512MiB' or '2GB'.")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def format_bytes(n: int | None) -> str:
    """Format ``536870912`` as ``"512 MiB"``, and ``None`` as an empty string."""
    if n is None:
        return ""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n} B"
