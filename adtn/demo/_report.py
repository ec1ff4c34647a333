"""The tables and the figure of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import missing
from ._run import Report, Result

if TYPE_CHECKING:
    from rich.table import Table


def tables(report: Report) -> list[Table]:
    """Build one table per replaced layer: accuracy and seconds per device, parameters, ratio and bytes."""
    from rich.table import Table

    result: list[Table] = []
    for layer in dict.fromkeys(r.layer for r in report.results):
        rows = [r for r in report.results if r.layer == layer]
        devices = list(dict.fromkeys(r.device for r in rows))
        seeds = 1 + max(r.seed for r in rows)
        title = f"{report.data}: {layer} generated, test accuracy in % (mean of {seeds} seed{'s' * (seeds > 1)})"
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("layer")
        for column in ("params", "active", "ratio", "bytes", *devices, "seconds"):
            table.add_column(column, justify="right")
        previous_control = True
        for case in dict.fromkeys(r.case for r in rows):
            case_rows = [r for r in rows if r.case == case]
            if previous_control and not case_rows[0].is_control:
                table.add_section()
            previous_control = case_rows[0].is_control
            table.add_row(*_cells(case, case_rows, devices))
        result.append(table)
    return result


def _cells(case: str, own: list[Result], devices: Sequence[str]) -> list[str]:
    one = own[0]
    accuracy = [_mean([r.accuracy for r in own if r.device == d]) for d in devices]
    seconds = " / ".join(_mean([r.seconds for r in own if r.device == d], 1) for d in devices)
    sizes = [f"{one.params:,}", f"{one.active_params:,}", f"{one.ratio:,.0f}x", f"{one.bytes:,}"]
    return [case, *sizes, *accuracy, seconds]


def _mean(values: list[float], digits: int = 2) -> str:
    return f"{np.mean(values):.{digits}f}" if values else "-"


def verdict(report: Report) -> list[str]:
    """Summarise in one sentence per layer what the controls show."""
    lines: list[str] = []
    for layer in dict.fromkeys(r.layer for r in report.results):
        mean = {
            case: float(np.mean([r.accuracy for r in report.results if r.layer == layer and r.case == case]))
            for case in dict.fromkeys(r.case for r in report.results if r.layer == layer)
        }
        if not {"dense", "scaled identity", "frozen random"} <= set(mean):
            continue
        lost = {k: mean["dense"] - mean[k] for k in ("scaled identity", "frozen random")}
        matters = min(lost.values()) > 1.0
        change = ", ".join(f"{k} {-v:+.2f} points" for k, v in lost.items())
        meaning = "this layer matters" if matters else "this layer is redundant, and any generator will do"
        lines.append(f"{layer}: {change} relative to dense; {meaning}.")
    return lines


def draw(report: Report, path: Path) -> None:
    """Draw loss curves, dense and generated weights, and singular spectra as a PNG.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise missing("matplotlib", "plot", "The figure of the demo") from error
    layers = list(dict.fromkeys(r.layer for r in report.results))
    figure, axes = plt.subplots(
        len(layers),
        4,
        figsize=(17, 4.2 * len(layers)),
        squeeze=False,
        width_ratios=(1.3, 1, 1, 1.3),
        layout="constrained",
    )
    for row, layer in zip(axes, layers, strict=True):
        first = report.results[0].device
        layer_rows = [r for r in report.results if r.layer == layer and r.device == first and r.seed == 0]
        _draw_losses(row[0], layer_rows, layer)
        best = max((r for r in layer_rows if not r.is_control), key=lambda r: r.accuracy, default=None)
        shown = ["dense"] + ([best.case] if best is not None else [])
        for axis, case in zip(row[1:3], shown, strict=False):
            _draw_weight(axis, report.weights[layer, case], case)
        for axis in row[1 + len(shown) : 3]:
            axis.axis("off")
        _draw_spectra(row[3], {r.case: report.weights[layer, r.case] for r in layer_rows})
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_losses(axis: Any, results: list[Result], title: str) -> None:
    for r in results:
        window = max(1, len(r.history) // 40)
        smooth = np.convolve(r.history, np.ones(window) / window, mode="valid")
        axis.plot(np.maximum(smooth, 1e-6), label=f"{r.case} ({r.accuracy:.1f} %)", ls="--" if r.is_control else "-")
    axis.set(title=title, xlabel="step", ylabel="training loss (moving mean)", yscale="log")
    axis.legend(fontsize=7)


def _draw_weight(axis: Any, weight: np.ndarray, case: str) -> None:
    limit = 3 * float(np.std(weight)) or 1.0
    axis.imshow(weight, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axis.set(title=f"weight: {case}", xlabel="input", ylabel="output")


def _draw_spectra(axis: Any, weights: dict[str, np.ndarray]) -> None:
    for case, weight in weights.items():
        values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
        control = case in ("dense", "scaled identity", "frozen random")
        axis.plot(np.maximum(values / values[0], 1e-7), label=case, ls="--" if control else "-")
    axis.set(title="singular values, largest = 1", xlabel="index", yscale="log", ylim=(1e-6, 2))
    axis.legend(fontsize=7)
