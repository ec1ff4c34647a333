"""One fit on every device, side by side: the same work, the same answer, and how long it took."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._atomic import write_atomic
from .._errors import ADTNError
from ..generator import Generator
from ..network import MERA, MPO, TTN, BrickWall, Topology
from ..optim import fit
from ..schedule import devices as list_devices
from ._run import machine

if TYPE_CHECKING:
    from rich.table import Table

TOPOLOGIES: dict[str, Topology] = {
    "TTN": TTN(bond=4),
    "MERA": MERA(bond=2),
    "brick wall": BrickWall(layers=2),
    "MPO": MPO(bond=4),
}


@dataclass
class Timing:
    """One topology on one device.

    Parameters
    ----------
    topology, device : str
    milliseconds : list of float
        Per step, one entry per repetition; the first of a device is left out. JAX compiles anew in every fit, and that
        time is in here, spread over the steps.
    relative_error : float
        After the fit.
    error : str
        Why it failed, empty if it did not.
    """

    topology: str
    device: str
    milliseconds: list[float] = field(default_factory=list)
    relative_error: float = float("nan")
    error: str = ""

    @property
    def median(self) -> float:
        """Median over the repetitions."""
        return statistics.median(self.milliseconds) if self.milliseconds else float("nan")


@dataclass
class Comparison:
    """All timings of one weight size."""

    size: int
    steps: int
    timings: list[Timing]

    def table(self) -> Table:
        """Milliseconds per step, their ratio to the first device, and the error each device ended with."""
        from rich.table import Table

        table = Table(
            title=f"fit of a {self.size}x{self.size} weight, float32, adam, {self.steps} steps",
            title_justify="left",
        )
        for column in ("topology", "device", "ms per step", "ratio", "relative error"):
            table.add_column(column, justify="left" if column in ("topology", "device") else "right")
        first: dict[str, float] = {}
        for t in self.timings:
            if t.topology not in first:
                if first:
                    table.add_section()
                first[t.topology] = t.median
            base = first[t.topology]
            cells = (
                (t.error, "", "")
                if t.error
                else (f"{t.median:.2f}", f"{t.median / base:.2f}", f"{t.relative_error:.6f}")
            )
            table.add_row(t.topology, t.device, *cells)
        return table

    def write(self, path: Path, command: str) -> None:
        """JSON with versions and machine; failed runs are kept."""
        rows: list[dict[str, Any]] = [{**vars(t), "median": t.median} for t in self.timings]
        content = {
            "command": command,
            "size": self.size,
            "steps": self.steps,
            "machine": machine(),
            "timings": rows,
        }
        write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def compare_backends(devices: Sequence[str] | None, *, size: int, steps: int, repeats: int) -> Comparison:
    """Fit the same weight from the same start on every device, repetitions interleaved.

    Parameters
    ----------
    devices : sequence of str or None
        All usable ones when ``None``.
    size : int
        Rows and columns of the weight.
    steps, repeats : int

    Returns
    -------
    Comparison
    """
    where = list(devices) if devices else [d.name for d in list_devices().usable]
    x = np.linspace(0.0, 1.0, size)
    weight = np.sin(8.0 * np.add.outer(x**2, x)) * np.exp(-(np.subtract.outer(x, x) ** 2) * 4.0)
    timings: list[Timing] = []
    for name, topology in TOPOLOGIES.items():
        generator = Generator(weight.shape, topology, scale=weight)
        own = {device: Timing(name, device) for device in where}
        for repeat in range(repeats + 1):
            for device, timing in own.items():
                if timing.error:
                    continue
                try:
                    began = time.perf_counter()
                    solution = fit(generator, weight, device=device, steps=steps, lr=4e-2, progress=False)
                    spent = time.perf_counter() - began
                except ADTNError as error:
                    timing.error = str(error)
                    continue
                timing.relative_error = solution.relative_error
                if repeat:
                    timing.milliseconds.append(1e3 * spent / steps)
        timings += own.values()
    return Comparison(size, steps, timings)
