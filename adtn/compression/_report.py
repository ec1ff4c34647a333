"""The report of a compression: a table, JSON, and a self-contained page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._files import write_bytes
from ..generator import Generator
from ..topology import topology_to_json
from ._config import Config
from ._rows import LayerRow, ModelCost, cells

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class CompressReport:
    """The result of :func:`adtn.compress`.

    Parameters
    ----------
    config : Config
    layers : list of LayerRow
        The replaced layers.
    dense : dict of str to str
        The layers that stay dense, with reasons.
    before, after : ModelCost
    losses : list of float
        Losses of the training of the whole model.
    seconds : float
        The total time.
    generators : dict of str to Generator
        Generators of the replaced weights, with their final parameters.
    corners : dict of str to (numpy.ndarray, numpy.ndarray)
        First rows and columns of each weight, dense and generated, for the page.

    Examples
    --------
    >>> import adtn, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> report = adtn.compress(model, adtn.Config(targets=["0"], topology=adtn.TTN(bond=2), steps=20))
    >>> sorted(report.generators), report.after.params < report.before.params
    (['0'], True)
    """

    config: Config
    layers: list[LayerRow]
    dense: dict[str, str]
    before: ModelCost
    after: ModelCost
    losses: list[float]
    seconds: float
    generators: dict[str, Generator] = field(default_factory=dict, repr=False)
    corners: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def ratio(self) -> float:
        """The number of parameters of the whole model before, per parameter after."""
        return self.before.params / max(self.after.params, 1)

    def table(self) -> Table:
        """Build a table with one row per replaced layer, and one for the model."""
        from rich.table import Table

        table = Table(title="compressed layers", title_justify="left", title_style="bold")
        for n, column in enumerate(
            ("layer", "kind", "weight", "topology", "dense", "params", "active", "ratio", "error")
        ):
            table.add_column(column, justify="left" if n < 4 else "right")
        for r in self.layers:
            table.add_row(*cells(r))
        table.add_section()
        model = f"{self.before.params:,}", f"{self.after.params:,}", "", f"{self.ratio:,.1f}x", ""
        table.add_row("whole model", "", "", "", *model)
        return table

    def summary(self) -> list[str]:
        """Return sentences about the model before and after."""
        b, a = self.before, self.after
        lines = [f"parameters {b.params:,} -> {a.params:,} ({self.ratio:,.1f}x), {b.bytes:,} -> {a.bytes:,} bytes"]
        if b.score is not None and a.score is not None:
            lines.append(f"score {b.score:.4g} -> {a.score:.4g}")
        if b.accuracy is not None and a.accuracy is not None:
            lines.append(f"accuracy {b.accuracy:.2f} % -> {a.accuracy:.2f} %")
        if b.loss is not None and a.loss is not None:
            lines.append(f"loss on the test data {b.loss:.4f} -> {a.loss:.4f}")
        if b.forward_seconds and a.forward_seconds:
            lines.append(
                f"forward pass {b.forward_seconds * 1e3:.2f} ms -> {a.forward_seconds * 1e3:.2f} ms "
                f"({a.forward_seconds / b.forward_seconds:.2f}x the time)"
            )
        expected = [r.predicted_seconds for r in self.layers]
        if all(expected) and a.forward_seconds:
            lines.append(
                f"the scheduler expected {sum(filter(None, expected)) * 1e3:.2f} ms of it for the generated weights"
            )
        if b.forward_peak_bytes and a.forward_peak_bytes:
            lines.append(
                f"its memory beside the parameters {b.forward_peak_bytes / 2**20:.2f} MiB -> "
                f"{a.forward_peak_bytes / 2**20:.2f} MiB"
            )
        if self.losses:
            lines.append(f"loss {self.losses[0]:.4f} -> {self.losses[-1]:.4f} in {len(self.losses)} steps")
        lines.append(f"{self.seconds:.1f} s in all")
        for why in dict.fromkeys(self.dense.values()):
            names = [name or "the model itself" for name, reason in self.dense.items() if reason == why]
            more = f" and {len(names) - 3} more" if len(names) > 4 else ""
            lines.append(f"dense, {why}: {', '.join(names[: 3 if more else 4])}{more}")
        return lines

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        text = StringIO()
        Console(file=text, width=160).print(self.table())
        return text.getvalue() + "\n".join(self.summary())

    def to_json(self) -> str:
        """Convert to a dictionary, without the parameters of generators."""
        config = asdict(self.config) | {
            "topology": topology_to_json(self.config.topology),
            "candidates": [topology_to_json(one) for one in self.config.candidates or ()],
        }
        content: dict[str, Any] = {
            "config": config,
            "layers": [asdict(r) | {"ratio": r.ratio} for r in self.layers],
            "dense": self.dense,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "losses": self.losses,
            "seconds": self.seconds,
        }
        return json.dumps(content, indent=1, default=_plain)

    def save(self, path: str | Path) -> None:
        """Write JSON, or a self-contained page if the name ends in ``.html``, atomically."""
        text = self.to_html() if Path(path).suffix == ".html" else self.to_json() + "\n"
        write_bytes(path, text.encode())

    def to_html(self) -> str:
        """Render a self-contained page."""
        from ._page import page  # imported late, so that importing adtn is fast

        return page(self)


def _plain(value: Any) -> Any:
    """Convert topologies and bases inside a config to plain values."""
    try:
        return topology_to_json(value)
    except (TypeError, AttributeError):
        return str(value)
