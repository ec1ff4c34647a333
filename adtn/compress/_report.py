"""What compressing a model did: a table, JSON, and a page that needs nothing else."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._atomic import write_atomic
from ..generator import Generator
from ..network import topology_to_json
from ._config import Config

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class LayerRow:
    """One replaced layer.

    Parameters
    ----------
    name, kind : str
    shapes : tuple of tuple of int
        Of its weights.
    topology : str
    dense, params, active : int
        Entries of the dense weights, numbers of the generators, and those that can influence the weights.
    local_errors : list of float
        After the local fit, before the model was trained as a whole: relative error of the layer's outputs where there
        were data, of its weight otherwise.
    tied : tuple of str
        Layers that share the generator.
    sensitivity : float or None
        Growth of the model's loss per squared error, where a budget had to be shared out.
    predicted_seconds : float or None
        What the scheduler expects of the layer in a forward pass; of convolutions and embeddings, of making the weight.
    """

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    topology: str
    dense: int
    params: int
    active: int
    local_errors: list[float]
    tied: tuple[str, ...] = ()
    sensitivity: float | None = None
    predicted_seconds: float | None = None

    @property
    def ratio(self) -> float:
        """Dense entries per number."""
        return self.dense / max(self.params, 1)


@dataclass(frozen=True)
class ModelCost:
    """The model as a whole; time and memory of a forward pass because smaller is not faster by itself."""

    params: int
    bytes: int
    accuracy: float | None
    forward_seconds: float | None
    forward_peak_bytes: int | None
    loss: float | None = None


@dataclass(frozen=True)
class CompressReport:
    """The result of :func:`adtn.compress`.

    Parameters
    ----------
    config : Config
    layers : list of LayerRow
        What was replaced.
    dense : dict of str to str
        What stayed dense, and why.
    before, after : ModelCost
    losses : list of float
        Of the training of the whole model.
    seconds : float
        Of everything.
    generators : dict of str to Generator
        Of the replaced weights, with the numbers they have now.
    """

    config: Config
    layers: list[LayerRow]
    dense: dict[str, str]
    before: ModelCost
    after: ModelCost
    losses: list[float]
    seconds: float
    generators: dict[str, Generator] = field(default_factory=dict, repr=False)

    @property
    def ratio(self) -> float:
        """Parameters of the whole model before, per parameter after."""
        return self.before.params / max(self.after.params, 1)

    def table(self) -> Table:
        """One line per replaced layer, and the model."""
        from rich.table import Table

        table = Table(title="compressed layers", title_justify="left", title_style="bold")
        for n, column in enumerate(
            ("layer", "kind", "weight", "topology", "dense", "params", "active", "ratio", "error")
        ):
            table.add_column(column, justify="left" if n < 4 else "right")
        for r in self.layers:
            table.add_row(*_cells(r))
        table.add_section()
        model = f"{self.before.params:,}", f"{self.after.params:,}", "", f"{self.ratio:,.1f}x", ""
        table.add_row("whole model", "", "", "", *model)
        return table

    def summary(self) -> list[str]:
        """Sentences about the model before and after."""
        b, a = self.before, self.after
        lines = [f"parameters {b.params:,} -> {a.params:,} ({self.ratio:,.1f}x), {b.bytes:,} -> {a.bytes:,} bytes"]
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
                f"of which the replaced layers were expected to take {sum(filter(None, expected)) * 1e3:.2f} ms"
            )
        if b.forward_peak_bytes is not None and a.forward_peak_bytes is not None:
            lines.append(
                f"its extra memory {b.forward_peak_bytes / 2**20:.1f} MiB -> {a.forward_peak_bytes / 2**20:.1f} MiB"
            )
        if self.losses:
            lines.append(f"loss {self.losses[0]:.4f} -> {self.losses[-1]:.4f} in {len(self.losses)} steps")
        lines.append(f"{self.seconds:.1f} s in all")
        for why in dict.fromkeys(self.dense.values()):
            names = ", ".join(name for name, reason in self.dense.items() if reason == why)
            lines.append(f"dense, {why}: {names}")
        return lines

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        text = StringIO()
        Console(file=text, width=160).print(self.table())
        return text.getvalue() + "\n".join(self.summary())

    def to_json(self) -> str:
        """Everything but the numbers of the generators."""
        config = asdict(self.config) | {
            "topology": topology_to_json(self.config.topology),
            "candidates": [topology_to_json(one) for one in self.config.candidates],
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
        """As JSON, or as a self-contained page when the name ends in ``.html``; whole or not at all."""
        text = self.to_html() if Path(path).suffix == ".html" else self.to_json() + "\n"
        write_atomic(path, text.encode())

    def to_html(self) -> str:
        """A page without anything from elsewhere."""
        head = ("layer", "kind", "weight", "topology", "dense", "parameters", "active", "ratio", "local error")
        rows = "".join(_html_row("td", _cells(r)) for r in self.layers)
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self.summary() if not line.startswith("dense, "))
        dense = "".join(_html_row("td", item) for item in self.dense.items())
        kept = f"<h2>Dense layers</h2><table>{_html_row('th', ('layer', 'why'))}{dense}</table>" if dense else ""
        curve = f"<h2>Training</h2>{_curve(self.losses)}" if len(self.losses) > 1 else ""
        return (
            "<!doctype html><html lang='en'><meta charset='utf-8'><title>adtn: compressed model</title>"
            f"<style>{_STYLE}</style><h1>Compressed model</h1><ul>{lines}</ul>"
            f"<h2>Layers</h2>{_bars(self.layers)}<table>{_html_row('th', head)}{rows}</table>{curve}{kept}</html>\n"
        )


def _cells(r: LayerRow) -> list[str]:
    name = r.name + (f" = {', '.join(r.tied)}" if r.tied else "")
    shapes = " + ".join("x".join(map(str, s)) for s in r.shapes)
    errors = ", ".join(f"{e:.3f}" for e in r.local_errors)
    return [
        name, r.kind, shapes, r.topology, f"{r.dense:,}", f"{r.params:,}", f"{r.active:,}", f"{r.ratio:,.0f}x", errors,
    ]  # fmt: skip


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}th,td{padding:.25em .8em;border-bottom:1px solid #ddd;"
    "text-align:right}th:nth-child(-n+4),td:nth-child(-n+4){text-align:left}svg{max-width:100%;height:auto}"
    "svg text{font:13px system-ui,sans-serif;fill:#333}"
)


def _html_row(tag: str, cells: Any) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"


def _bars(layers: list[LayerRow]) -> str:
    """Parameters of every layer before and after, logarithmic."""
    from math import log10

    top = max(max(log10(max(r.dense, 1)) for r in layers), 1.0)
    height, parts = 44 * len(layers) + 10, []
    for n, r in enumerate(layers):
        y = 44 * n
        parts.append(f"<text x='0' y='{y + 22}'>{html.escape(r.name[-26:])}</text>")
        for k, (value, color) in enumerate(((r.dense, "#b8c4d6"), (r.params, "#2f6f4f"))):
            width = 560 * log10(max(value, 1)) / top
            parts.append(f"<rect x='200' y='{y + 4 + 18 * k}' width='{width:.1f}' height='15' fill='{color}'/>")
            parts.append(f"<text x='{206 + width:.1f}' y='{y + 16 + 18 * k}'>{value:,}</text>")
    return (
        f"<svg viewBox='0 0 900 {height}' role='img' aria-label='parameters before and after'>{''.join(parts)}</svg>"
        "<p>Numbers of each layer before (grey) and after (green), on a logarithmic scale.</p>"
    )


def _curve(losses: list[float]) -> str:
    """The loss of the training, averaged over neighbouring steps."""
    bins = min(len(losses), 120)
    edges = [round(i * len(losses) / bins) for i in range(bins + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    points = " ".join(
        f"{60 + 780 * i / max(bins - 1, 1):.1f},{210 - 190 * (m - low) / span:.1f}" for i, m in enumerate(means)
    )
    return (
        "<svg viewBox='0 0 900 250' role='img' aria-label='loss'>"
        "<line x1='60' y1='215' x2='845' y2='215' stroke='#999'/><line x1='60' y1='15' x2='60' y2='215' stroke='#999'/>"
        f"<text x='0' y='25'>{high:.3g}</text><text x='0' y='214'>{low:.3g}</text>"
        f"<text x='60' y='235'>1</text><text x='800' y='235'>{len(losses)} steps</text>"
        f"<polyline points='{points}' fill='none' stroke='#2f6f4f' stroke-width='2'/></svg>"
    )


def _plain(value: Any) -> Any:
    """Topologies and bases inside a config."""
    try:
        return topology_to_json(value)
    except (TypeError, AttributeError):
        return str(value)
