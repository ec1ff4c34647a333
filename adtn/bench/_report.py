"""Reports of benchmarks: a table, JSON, and a figure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import write_bytes
from ..errors import missing
from ._config import BenchConfig
from ._machine import machine

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(kw_only=True)
class BenchResult:
    """The result of one task on one device; ``error`` is the reason if it failed, and otherwise empty."""

    case: str
    task: str
    batch: int | None
    device: str
    dtype: str
    mode: str = ""
    tiles: int = 1
    seconds: float | None = None
    predicted_seconds: float | None = None
    peak_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    relative_error: float | None = None
    error: str = ""

    @property
    def work(self) -> tuple[str, str, int | None, str]:
        """The task that is compared between devices: case, task, batch and dtype."""
        return self.case, self.task, self.batch, self.dtype


@dataclass
class BenchReport:
    """The results of a benchmark."""

    config: BenchConfig
    results: list[BenchResult] = field(default_factory=list)

    def table(self) -> Table:
        """Build a table with one row per task and device, and times relative to the first device."""
        from rich.table import Table

        table = Table(title="the same tasks on every device", title_justify="left")
        columns = ("task", "device", "dtype", "mode", "ms", "ratio", "predicted ms", "peak MiB", "relative error")
        for column in columns:
            table.add_column(column, justify="left" if column in columns[:4] else "right")
        first: dict[tuple[Any, ...], float] = {}
        last: tuple[Any, ...] | None = None
        for r in self.results:
            if last is not None and r.work != last:
                table.add_section()
            last = r.work
            name = f"{r.case} {r.task}" + (f" {r.batch}" if r.batch is not None else "")
            if r.error:
                table.add_row(name, r.device, r.dtype, r.error)
                continue
            assert r.seconds is not None
            base = first.setdefault(r.work, r.seconds)
            mode = r.mode + (f", {r.tiles} tiles" if r.tiles > 1 else "")
            table.add_row(
                name,
                r.device,
                r.dtype,
                mode,
                _number(r.seconds, 1e3),
                f"{r.seconds / base:.2f}",
                _number(r.predicted_seconds, 1e3),
                _number(r.peak_bytes, 2**-20),
                "" if r.relative_error is None else f"{r.relative_error:.1e}",
            )
        return table

    def to_json(self, command: str) -> dict[str, Any]:
        """Convert to a dictionary, with the configuration, the versions and the machine."""
        return {
            "command": command,
            "machine": machine(),
            "config": self.config.to_json(),
            "results": [asdict(r) for r in self.results],
        }

    def write(self, path: Path, command: str) -> None:
        """Write the report as JSON."""
        write_bytes(path, (json.dumps(self.to_json(command), indent=1) + "\n").encode())

    def draw(self, path: Path) -> None:
        """Draw the times of all cases, with one panel per task and one colour per device.

        Raises
        ------
        MissingDependencyError
            If matplotlib is not installed.
        """
        try:
            import matplotlib
        except ImportError as error:
            raise missing("matplotlib", "plot", "A figure") from error
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        good = [r for r in self.results if r.seconds is not None]
        devices, cases = (list(dict.fromkeys(getattr(r, key) for r in good)) for key in ("device", "case"))
        tasks = list(dict.fromkeys((r.task, r.batch, r.dtype) for r in good))
        columns = max(min(len(tasks), 4), 1)
        rows = max(-(-len(tasks) // columns), 1)
        figure, panels = plt.subplots(
            rows,
            columns,
            squeeze=False,
            sharey=True,
            layout="constrained",
            figsize=(2 + 2.4 * columns, 1.3 + rows * (0.6 + 0.24 * len(cases))),
        )
        for axes, task in zip(panels.flat, tasks, strict=False):
            for d, device in enumerate(devices):
                rows_of_device = [r for r in good if r.device == device and r.work[1:] == task]
                times = [1e3 * r.seconds for r in rows_of_device if r.seconds is not None]
                axes.plot(
                    times, [cases.index(r.case) for r in rows_of_device], "os^Dv"[d % 5], ms=5, alpha=0.8, label=device
                )
            axes.set_title(" ".join(str(x) for x in task if x is not None), fontsize=9)
            axes.set_yticks(range(len(cases)), cases, fontsize=8)
            axes.set_xscale("log")
            axes.set_xlabel("ms")
            axes.grid(alpha=0.3)
        for axes in panels.flat[len(tasks) :]:
            axes.set_axis_off()
        panels[0, 0].set_ylim(max(len(cases), 1) - 0.5, -0.5)
        figure.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=5)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _number(x: float | None, factor: float) -> str:
    return "" if x is None else f"{x * factor:.3g}"
