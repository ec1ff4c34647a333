"""The report of a codec as a self-contained page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, Protocol

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0;display:block;overflow-x:auto}"
    "th,td{padding:.25em .6em;border-bottom:1px solid #8884;text-align:right;white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left}"
    ".own{font-weight:600}svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:currentColor}"
)
_WIDTH, _HEIGHT, _LEFT, _BELOW = 760, 420, 64, 48


class Content(Protocol):
    """The part of a report that a page shows."""

    @property
    def rows(self) -> Sequence[Any]: ...
    @property
    def shares(self) -> dict[str, float]: ...
    @property
    def texts(self) -> int: ...
    @property
    def prefix(self) -> int: ...
    @property
    def continuation(self) -> int: ...


def page(report: Content) -> str:
    """Render a report as one string of HTML."""
    names = ("", "bits per value", "times smaller", "KL (nats)", "±", "loss (nats)", "encode s", "decode s")
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        f"<tr class='{'own' if row.name.startswith('adtn') else ''}'><td>{html.escape(row.name)}</td>"
        f"<td>{row.bits_per_value:.3f}</td><td>{row.ratio:.1f}</td><td>{row.divergence:.4f}</td>"
        f"<td>{row.standard_error:.4f}</td><td>{row.loss:+.4f}</td><td>{row.encode_seconds:.2f}</td>"
        f"<td>{row.decode_seconds:.2f}</td></tr>"
        for row in report.rows
    )
    shares = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{100 * share:.1f} %</td></tr>" for name, share in report.shares.items()
    )
    last = html.escape(str(report).splitlines()[-1])
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>adtn: coded caches</title><style>{_STYLE}</style><h1>Coded caches</h1>"
        f"<p>{report.texts} prefixes of {report.prefix:,} tokens, each read by the next {report.continuation}. "
        f"KL is the mean divergence of the next token. {last}.</p>{_picture(report.rows)}"
        f"<table><tr>{head}</tr>{body}</table><h2>Coded bits by layers</h2><table>{shares}</table></html>\n"
    )


def _picture(rows: Sequence[Any]) -> str:
    """Draw divergence over bits, both logarithmic; the lower and the further left, the better."""
    points = [(row.bits_per_value, max(row.divergence, 1e-6), row.name) for row in rows]
    low_x, high_x = (f(math.log2(x) for x, _, _ in points) for f in (min, max))
    low_y, high_y = (f(math.log10(y) for _, y, _ in points) for f in (min, max))
    low_x, high_x, low_y, high_y = math.floor(low_x), math.ceil(high_x), math.floor(low_y), math.ceil(high_y)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log2(x) - low_x) / max(high_x - low_x, 1)
        up = (math.log10(y) - low_y) / max(high_y - low_y, 1)
        return _LEFT + across * (_WIDTH - _LEFT - 150), (1.0 - up) * (_HEIGHT - _BELOW - 10) + 10

    marks: list[str] = []
    for k in range(low_x, high_x + 1):
        x, y = place(2.0**k, 10.0**low_y)
        marks.append(f"<line x1='{x:.0f}' x2='{x:.0f}' y1='10' y2='{y:.0f}' stroke='#8883'/>")
        marks.append(f"<text x='{x:.0f}' y='{y + 18:.0f}' text-anchor='middle'>{2.0**k:g}</text>")
    for k in range(low_y, high_y + 1):
        x, y = place(2.0**high_x, 10.0**k)
        marks.append(f"<line x1='{_LEFT}' x2='{x:.0f}' y1='{y:.0f}' y2='{y:.0f}' stroke='#8883'/>")
        marks.append(f"<text x='{_LEFT - 8}' y='{y + 4:.0f}' text-anchor='end'>{10.0**k:g}</text>")
    own = [place(x, y) for x, y, name in sorted(points) if name.startswith("adtn")]
    marks.append(
        "<polyline fill='none' stroke='#2f6f4f' stroke-width='2' points='"
        + " ".join(f"{x:.1f},{y:.1f}" for x, y in own)
        + "'/>"
    )
    labels: list[tuple[float, float]] = []
    for x, y, name in sorted(points, key=lambda point: point[1], reverse=True):
        at_x, at_y = place(x, y)
        color = "#2f6f4f" if name.startswith("adtn") else "#b0562b"
        marks.append(f"<circle cx='{at_x:.1f}' cy='{at_y:.1f}' r='4' fill='{color}'/>")
        while any(abs(at_x - a) < 220 and abs(at_y - b) < 13 for a, b in labels):
            at_y += 4  # below the label that is there
        labels.append((at_x, at_y))
        marks.append(f"<text x='{at_x + 7:.1f}' y='{at_y + 4:.1f}'>{html.escape(name)}</text>")
    middle = (_WIDTH - 150 + _LEFT) / 2
    marks.append(f"<text x='{middle:.0f}' y='{_HEIGHT - 6}' text-anchor='middle'>bits per value</text>")
    half = _HEIGHT / 2
    marks.append(
        f"<text x='12' y='{half:.0f}' transform='rotate(-90 12 {half:.0f})' text-anchor='middle'>KL (nats)</text>"
    )
    return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'>{''.join(marks)}</svg>"
