"""Helpers of the scripts: one process per device, and results with the command and machine that produced them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adtn.bench import machine


def rows_per_device(devices: Sequence[str]) -> list[dict[str, Any]]:
    """Collect the rows that this script prints with ``--device`` for every device.

    Each device has a process of its own, as threads of one framework slow down another.
    """
    rows: list[dict[str, Any]] = []
    for device in devices:
        command = [sys.executable, *sys.argv, "--device", device]
        rows += json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return rows


def write_results(out: Path, **content: Any) -> None:
    """Write JSON that begins with the command and the machine."""
    command = " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    out.write_text(json.dumps({"command": command, "machine": machine(), **content}, indent=1) + "\n")
