"""The modes of execution."""

from __future__ import annotations

from typing import Literal

Mode = Literal["materialise", "stream", "factored"]
MODES: tuple[Mode, ...] = ("materialise", "stream", "factored")
ANY_BATCH: tuple[Mode, ...] = ("materialise", "stream")
"""The modes whose executables do not depend on the number of rows of an input."""
