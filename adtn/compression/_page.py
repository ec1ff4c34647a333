"""The report of a compressed model as a self-contained page."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from itertools import pairwise
from math import log10
from typing import Any, Protocol

import numpy as np

from ._rows import COLUMNS, Baseline, LayerRow, ModelCost, baseline_cells, baseline_columns, cells, times

_PICTURES = 12  # number of weights that are shown
_VISIBLE = 60  # below this ratio of the most to the fewest bytes, bars are linear
_NAME = 40  # characters of a layer's name next to its bars
_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0;display:block;overflow-x:auto}"
    "th,td{padding:.25em .6em;border-bottom:1px solid #8884;text-align:right;white-space:nowrap}"
    "th:nth-child(-n+4),td:nth-child(-n+4){text-align:left}"
    ".baselines th:nth-child(n+2),.baselines td:nth-child(n+2){text-align:right}"
    ".alarm{color:#c62828;font-weight:600}p.alarm{padding:.4em .8em;border-left:.3em solid #c62828}"
    "svg{max-width:100%;height:auto}svg text{font:13px system-ui,sans-serif;fill:currentColor}"
    ".tiles{display:flex;flex-wrap:wrap;gap:1em;margin:1.5em 0}"
    ".tile{flex:1 1 11em;padding:1em;border-radius:.6em;background:#2f6f4f18}"
    ".tile b{display:block;font-size:1.7em;line-height:1.3}"
    ".pairs{display:flex;flex-wrap:wrap;gap:1.5em}.pairs figure{margin:0}"
    ".pairs img{width:144px;height:144px;image-rendering:pixelated;margin-right:4px}"
    "figcaption{font-size:.85em;max-width:292px;overflow-wrap:anywhere}"
)


class Content(Protocol):
    """The part of a report that a page shows."""

    @property
    def layers(self) -> list[LayerRow]: ...
    @property
    def dense(self) -> dict[str, str]: ...
    @property
    def before(self) -> ModelCost: ...
    @property
    def after(self) -> ModelCost: ...
    @property
    def losses(self) -> list[float]: ...
    @property
    def corners(self) -> dict[str, tuple[np.ndarray, np.ndarray]]: ...
    @property
    def ratio(self) -> float: ...
    @property
    def title(self) -> str: ...
    @property
    def baselines(self) -> list[Baseline]: ...
    @property
    def file_bytes(self) -> int | None: ...
    def alarms(self) -> list[str]: ...
    def settings(self) -> dict[str, str]: ...
    def summary(self) -> list[str]: ...


def page(report: Content) -> str:
    """Render a report as one string of HTML."""
    rows = "".join(_row("td", cells(r)) for r in report.layers)
    alarms = report.alarms()
    alarm = "".join(f"<p class='alarm'>{html.escape(line)}</p>" for line in alarms)
    shown = [line for line in report.summary() if line not in alarms and not line.startswith("dense, ")]
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in shown)
    dense = "".join(_row("td", item) for item in report.dense.items())
    kept = f"<h2>Dense layers</h2><table>{_row('th', ('layer', 'why'))}{dense}</table>" if dense else ""
    settings = "".join(_row("td", item) for item in report.settings().items())
    curve = f"<h2>Training</h2>{_curve(report.losses)}" if len(report.losses) > 1 else ""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>adtn: {html.escape(report.title)}, compressed</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(report.title)}, compressed</h1>"
        f"{alarm}{_tiles(report)}<ul>{lines}</ul>{_baselines(report)}"
        f"<h2>Layers</h2>{_bars(report.layers) if report.layers else ''}<table>{_row('th', COLUMNS)}{rows}</table>"
        f"{_pictures(report)}{curve}{kept}<h2>Configuration</h2><table>{settings}</table></html>\n"
    )


def _baselines(report: Content) -> str:
    """Draw the table of baselines; better ones of no more bytes are red."""
    if not report.baselines:
        return ""
    rows = baseline_cells(report.before, report.after, report.baselines)
    better = [False, False, *(x.beats(report.after) for x in report.baselines)]
    body = "".join(
        _row("td", cells).replace("<tr>", "<tr class='alarm'>" if worse else "<tr>", 1)
        for cells, worse in zip(rows, better, strict=True)
    )
    head = _row("th", baseline_columns(report.after))
    return f"<h2>Baselines</h2><table class='baselines'>{head}{body}</table>"


def _row(tag: str, entries: Any) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in entries) + "</tr>"


def _tiles(report: Content) -> str:
    """Render the main figures as tiles."""
    b, a = report.before, report.after
    own, left = sum(r.dense_bytes for r in report.layers), sum(r.bytes for r in report.layers)
    tiles = [
        (times(own / max(left, 1)), f"{own:,} bytes of the replaced layers, now {left:,}"),
        (f"{report.ratio:,.1f}x", f"the whole model: {b.params:,} parameters, now {a.params:,}"),
    ]
    if report.file_bytes is not None:
        tiles[1] = (
            f"{b.bytes / report.file_bytes:,.1f}x",
            f"{b.bytes:,} bytes of parameters, in a file of " + (f"{report.file_bytes:,}"),
        )
    if b.score is not None and a.score is not None:
        tiles.append((f"{a.score:.4g}", f"score, was {b.score:.4g}"))
    elif b.accuracy is not None and a.accuracy is not None:
        tiles.append((f"{a.accuracy:.2f} %", f"accuracy, {a.accuracy - b.accuracy:+.2f} points"))
    elif b.loss is not None and a.loss is not None:
        tiles.append((f"{a.loss:.3f}", f"loss on the test data, was {b.loss:.3f}"))
    if b.forward_seconds and a.forward_seconds:
        told = f"{a.forward_seconds * 1e3:.2f} ms"
        tiles.append((told, f"forward pass, {a.forward_seconds / b.forward_seconds:.2f} times what it took"))
    return (
        "<div class='tiles'>"
        + "".join(f"<div class='tile'><b>{html.escape(x)}</b>{html.escape(y)}</div>" for x, y in tiles)
        + "</div>"
    )


def _bars(layers: list[LayerRow]) -> str:
    """Draw bars of bytes per layer before and after; logarithmic if small ones would not be visible."""
    counts = [max(n, 1) for r in layers for n in (r.dense_bytes, r.bytes)]
    most, least = max(counts), min(counts)
    linear = most < _VISIBLE * least
    top = most if linear else max(log10(most), 1.0)
    names = [r.name if len(r.name) <= _NAME else "…" + r.name[1 - _NAME :] for r in layers]
    left = 12 + 8 * max(len(name) for name in names)
    height, parts = 44 * len(layers) + 10, []
    for n, r in enumerate(layers):
        y = 44 * n
        parts.append(f"<text x='0' y='{y + 22}'>{html.escape(names[n])}</text>")
        for k, (value, color) in enumerate(((r.dense_bytes, "#8d9bb0"), (r.bytes, "#2f8f5f"))):
            width = (810 - left) * (value if linear else log10(max(value, 1))) / top
            parts.append(f"<rect x='{left}' y='{y + 4 + 18 * k}' width='{width:.1f}' height='15' fill='{color}'/>")
            parts.append(f"<text x='{left + 6 + width:.1f}' y='{y + 16 + 18 * k}'>{value:,}</text>")
    return (
        f"<p>Bytes of each layer before (grey) and after (green){'' if linear else ', on a logarithmic scale'}.</p>"
        f"<svg viewBox='0 0 900 {height}' role='img' aria-label='bytes before and after'>{''.join(parts)}</svg>"
    )


def _pictures(report: Content) -> str:
    """Draw a corner of every weight, dense and generated, each with its own colour scale."""
    if not report.corners:
        return ""
    figures: list[str] = []
    for name, pair in list(report.corners.items())[:_PICTURES]:
        images = "".join(
            f"<img alt='{what}' src='data:image/png;base64,{base64.b64encode(_png(x)).decode()}'>"
            for what, x in zip(("dense", "generated"), pair, strict=True)
        )
        figures.append(f"<figure>{images}<figcaption>{html.escape(name)}</figcaption></figure>")
    more = len(report.corners) - len(figures)
    left_out = f" {more} more are not shown." if more else ""
    return (
        f"<h2>Weights</h2><p>The first rows and columns of each weight: what was there, and what is generated now. Red "
        f"is positive, blue negative.{left_out}</p><div class='pairs'>{''.join(figures)}</div>"
    )


def _png(x: np.ndarray) -> bytes:
    """Draw a matrix with 255 colours from blue over white to red, saturated at three standard deviations."""
    away = x / (3.0 * float(np.sqrt(np.mean(np.square(x)))) or 1.0)
    pixels = np.clip(np.rint(127.0 * away), -127, 127).astype(np.int16) + 127
    fade = np.linspace(1.0, 0.0, 128)[:, None]
    blue = np.array([33, 102, 172]) * fade + 247 * (1 - fade)
    red = np.array([178, 24, 43]) * fade + 247 * (1 - fade)
    palette = np.concatenate([blue, red[-2::-1]]).astype(np.uint8)
    rows = np.concatenate([np.zeros((x.shape[0], 1), np.uint8), pixels.astype(np.uint8)], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 8, 3, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"PLTE", palette.tobytes())]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [*parts, chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)), chunk(b"IEND", b"")]
    )


def _curve(losses: list[float]) -> str:
    """Draw the training loss, averaged over neighbouring steps."""
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
        f"<polyline points='{points}' fill='none' stroke='#2f8f5f' stroke-width='2'/></svg>"
    )
