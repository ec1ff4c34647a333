"""The report of a compression: a table, JSON, and a self-contained page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._files import write_bytes
from .._version import __version__
from ..device import format_bytes
from ..generator import Generator
from ..precision import Precision
from ..topology import topology_to_json
from ._config import Config
from ._rest import stored_as
from ._rows import COLUMNS, Baseline, LayerRow, ModelCost, baseline_cells, baseline_columns, cells, describe, own_row

_DECODED = ", with decoded values beside the codes; allow_slower=True holds integers undecoded, which is slower"
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
    title : str
        The class of the model.
    warnings : list of str
        What is bad about the result, as far as it can be told; :func:`adtn.compress` warns of the same.
    baselines : list of Baseline
        Other ways to make the model small, if they were requested.
    rest : Precision or None
        The precision of everything else, if it is another one than in memory.
    file_bytes : int or None
        The size of the file of the state, headers included, for a budget in bytes or another precision of everything
        else.
    version, date : str
        The version of adtn, and the time in UTC.

    Examples
    --------
    >>> import adtn, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> config = adtn.Config(targets=["0"], topology=adtn.LowRank(bond=24), recipe="closed-form")
    >>> report = adtn.compress(model, config)
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
    title: str = "model"
    warnings: list[str] = field(default_factory=list)
    baselines: list[Baseline] = field(default_factory=list)
    rest: Precision | None = None
    file_bytes: int | None = None
    version: str = __version__
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def ratio(self) -> float:
        """The number of parameters of the whole model before, per parameter after."""
        return self.before.params / max(self.after.params, 1)

    def table(self) -> Table:
        """Build a table with one row per replaced layer, and one for the model."""
        from rich.table import Table

        table = Table(title=f"{self.title}: compressed layers", title_justify="left", title_style="bold")
        for n, column in enumerate(COLUMNS):
            table.add_column(column, justify="left" if n < 4 else "right")
        for r in self.layers:
            table.add_row(*cells(r))
        table.add_section()
        b, a = self.before, self.after
        stored = a.bytes if self.file_bytes is None else self.file_bytes
        name, smaller = "whole model" + ", in a file" * (stored != a.bytes), f"{b.bytes / max(stored, 1):,.1f}x"
        table.add_row(name, "", "", "", f"{b.params:,}", f"{a.params:,}", "", f"{stored:,}", smaller, "")
        return table

    def baseline_table(self) -> Table:
        """Build a table of the baselines beside the dense model and the result."""
        from rich.table import Table

        table = Table(title="baselines", title_justify="left", title_style="bold")
        for n, column in enumerate(baseline_columns(self.after)):
            table.add_column(column, justify="right" if n else "left")
        for row in baseline_cells(self.before, self.after, self.baselines):
            table.add_row(*row)
        return table

    def alarms(self) -> list[str]:
        """Return what a reader must know first: warnings, better baselines of no more bytes, and a slower result."""
        better = [x for x in self.baselines if x.beats(self.after)]
        lines = [f"warning: {line}" for line in self.warnings]
        if better:
            names = ", ".join(f"{x.name} ({describe(x, self.after)})" for x in better)
            lines.append(
                f"better than this result ({describe(own_row(self.after), self.after)}) with no more bytes: {names}"
            )
        b, a = self.before, self.after
        # quartiles that overlap do not tell which one is slower
        if b.forward_quartiles and a.forward_quartiles and a.forward_quartiles[0] > b.forward_quartiles[1]:
            lines.append(
                f"slower than the dense model on this device: {(a.forward_seconds or 0) * 1e3:.2f} ms against "
                f"{(b.forward_seconds or 0) * 1e3:.2f} ms for a forward pass"
            )
        return lines

    def summary(self) -> list[str]:
        """Return sentences about the model before and after, alarms first."""
        b, a = self.before, self.after
        lines = [
            *self.alarms(),
            f"parameters {b.params:,} -> {a.params:,} ({self.ratio:,.1f}x), {b.bytes:,} -> {a.bytes:,} bytes "
            f"({b.bytes / max(a.bytes, 1):,.1f}x)" + (", before everything else is rounded" if self.rest else ""),
        ]
        if self.file_bytes is not None:
            kept = stored_as(self.rest)
            lines.append(
                f"file of the state {self.file_bytes:,} bytes with its headers "
                f"({b.bytes / self.file_bytes:,.1f}x smaller than the dense parameters); what is not listed {kept}"
            )
        if b.score is not None and a.score is not None:
            lines.append(f"score {b.score:.4g} -> {a.score:.4g}")
        if b.accuracy is not None and a.accuracy is not None:
            lines.append(f"accuracy {b.accuracy:.2f} % -> {a.accuracy:.2f} %")
        if b.loss is not None and a.loss is not None:
            lines.append(f"loss on the test data {b.loss:.4f} -> {a.loss:.4f}")
        if b.forward_seconds and a.forward_seconds:
            lines.append(
                f"forward pass {_time(b)} -> {_time(a)} ({a.forward_seconds / b.forward_seconds:.2f}x the time; "
                "median and quartiles, measured in turns)"
            )
        expected = [r.predicted_seconds for r in self.layers]
        if all(expected) and a.forward_seconds:
            lines.append(
                f"the scheduler expected {sum(filter(None, expected)) * 1e3:.2f} ms of it for the generated weights"
            )
        if b.resident_bytes and a.resident_bytes:
            lines.append(
                f"memory of parameters and buffers {format_bytes(b.resident_bytes)} -> {format_bytes(a.resident_bytes)}"
                + (_DECODED if self._holds_decoded else "")
            )
        if b.forward_peak_bytes and a.forward_peak_bytes:
            lines.append(
                f"memory of a forward pass beside them {format_bytes(b.forward_peak_bytes)} -> "
                f"{format_bytes(a.forward_peak_bytes)}"
            )
        if self.losses:
            lines.append(f"loss {self.losses[0]:.4f} -> {self.losses[-1]:.4f} in {len(self.losses)} steps")
        lines.append(f"{self.seconds:.1f} s in all; adtn {self.version}, {self.date}, seed {self.config.seed}")
        for why in dict.fromkeys(self.dense.values()):
            names = [name or "the model itself" for name, reason in self.dense.items() if reason == why]
            more = f" and {len(names) - 3} more" if len(names) > 4 else ""
            lines.append(f"dense, {why}: {', '.join(names[: 3 if more else 4])}{more}")
        return lines

    @property
    def _holds_decoded(self) -> bool:
        """Whether there are codes that are decoded once."""
        return not self.config.allow_slower and any(g.precision is not None for g in self.generators.values())

    def settings(self) -> dict[str, str]:
        """Return the options of the config that differ from the defaults, and always the seed."""
        usual = Config()
        found = {f.name: getattr(self.config, f.name) for f in fields(self.config)}
        return {k: str(v) for k, v in found.items() if k == "seed" or v != getattr(usual, k)}

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        text = StringIO()
        console = Console(file=text, width=160)
        console.print(self.table())
        if self.baselines:
            console.print(self.baseline_table())
        return text.getvalue() + "\n".join(self.summary())

    def to_json(self) -> str:
        """Convert to a dictionary, without the parameters of generators."""
        config = asdict(self.config) | {
            "topology": None if self.config.topology is None else topology_to_json(self.config.topology),
            "candidates": [topology_to_json(one) for one in self.config.candidates or ()],
        }
        content: dict[str, Any] = {
            "title": self.title,
            "version": self.version,
            "date": self.date,
            "warnings": self.warnings,
            "config": config,
            "layers": [asdict(r) | {"ratio": r.ratio} for r in self.layers],
            "dense": self.dense,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "baselines": [asdict(x) | {"beats": x.beats(self.after)} for x in self.baselines],
            "rest": None if self.rest is None else self.rest.to_json(),
            "file_bytes": self.file_bytes,
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


def _time(cost: ModelCost) -> str:
    """Format the median time with its quartiles."""
    median = f"{(cost.forward_seconds or 0.0) * 1e3:.2f} ms"
    if cost.forward_quartiles is None:
        return median
    first, third = cost.forward_quartiles
    return f"{median} [{first * 1e3:.2f}, {third * 1e3:.2f}]"


def _plain(value: Any) -> Any:
    """Convert topologies and bases inside a config to plain values."""
    try:
        return topology_to_json(value)
    except (TypeError, AttributeError):
        return str(value)
