"""The bonds of a generator as a self-contained page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from .._typing import Float
from ._table import HEAD, notes, row

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:76em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1.5em 0;display:block;overflow-x:auto;font-size:.9em}"
    "th,td{padding:.2em .7em;border-bottom:1px solid #8884;text-align:left;white-space:nowrap}"
    ".number{text-align:right;font-variant-numeric:tabular-nums}"
    ".bonds{display:grid;grid-template-columns:repeat(auto-fill,minmax(17em,1fr));gap:1.2em}"
    ".bonds figure{margin:0}figcaption{font-size:.85em;line-height:1.35}figcaption b{font-size:1.05em}"
    "svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:currentColor}"
)
_WIDTH, _HEIGHT, _LEFT, _BELOW, _ABOVE = 280, 150, 40, 22, 8
_DEEPEST = 12  # decades below the largest value that are shown at most
_COLORS = {"linear": "#2f6f4f", "hyper": "#6a4fa3", "state": "#b0562b"}
_NUMBERS = range(3, 7)
_LEGEND = (
    "Values relative to the largest, on a logarithmic scale. Entropies are in nats; the rank is the exponential of the "
    "entropy. Spectra are those of the generated weight with its padding."
)


class Content(Protocol):
    """The part of bonds that a page shows."""

    @property
    def generator(self) -> Any: ...
    def __iter__(self) -> Any: ...


def page(bonds: Content) -> str:
    """Render bonds as one string of HTML."""
    return _document(f"<h1>Bonds</h1><p>{html.escape(repr(bonds.generator))}</p><p>{_LEGEND}</p>{_content(bonds)}")


def pages(named: Mapping[str, Content], without: Mapping[str, str]) -> str:
    """Render the bonds of several generators by name, and the reasons why others have none, as one string of HTML."""
    parts = [
        f"<h2>{html.escape(name)}</h2><p>{html.escape(repr(bonds.generator))}</p>{_content(bonds)}"
        for name, bonds in named.items()
    ]
    others = "".join(f"<li>{html.escape(name)}: {html.escape(why)}</li>" for name, why in without.items())
    rest = f"<h2>Without bonds</h2><ul>{others}</ul>" if others else ""
    return _document(f"<h1>Bonds</h1><p>{_LEGEND}</p>{''.join(parts)}{rest}")


def _document(content: str) -> str:
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>adtn: bonds</title><style>{_STYLE}</style>{content}</html>\n"
    )


def _content(bonds: Content) -> str:
    """Render the pictures and the table of one generator."""
    every = list(bonds)
    head = "".join(f"<th{_align(k)}>{name}</th>" for k, name in enumerate(HEAD))
    body = "".join(
        "<tr>" + "".join(f"<td{_align(k)}>{html.escape(x)}</td>" for k, x in enumerate(row(bond))) + "</tr>"
        for bond in every
    )
    remarks = "".join(f"<p>{html.escape(note[:1].upper() + note[1:])}.</p>" for note in notes(every))
    spectra = [bond.state_spectrum() if bond.kind == "state" else bond.spectrum() for bond in every]
    depth = max((_depth(values) for values in spectra), default=1)  # one scale, so that bonds can be compared
    figures = "".join(_figure(bond, values, depth) for bond, values in zip(every, spectra, strict=True))
    return f"{remarks}<div class='bonds'>{figures}</div><table><tr>{head}</tr>{body}</table>"


def _align(column: int) -> str:
    return " class='number'" if column in _NUMBERS else ""


def _figure(bond: Any, values: Float[np.ndarray, " rank"], depth: int) -> str:
    exact = "" if bond.exact else ", on a loop: predicts no errors"
    caption = (
        f"<b>{html.escape(bond.name)}</b> {html.escape('-'.join(bond.ends))}<br>{bond.kind} bond of {bond.dim}, rank "
        f"{bond.effective_rank:.2f}, entropy {bond.entropy:.2f}{exact}"
    )
    return (
        f"<figure>{_picture(values, _COLORS[bond.kind], bond.exact, depth)}<figcaption>{caption}</figcaption></figure>"
    )


def _shown(values: Float[np.ndarray, " rank"]) -> list[tuple[int, float]]:
    """Return the positions and decades of the values that are shown."""
    relative = values / max(float(values[0]) if values.size else 0.0, 1e-300)
    return [(k, math.log10(x)) for k, x in enumerate(relative.tolist()) if x > 10.0**-_DEEPEST]


def _depth(values: Float[np.ndarray, " rank"]) -> int:
    return max((math.ceil(-y) for _, y in _shown(values)), default=1) or 1


def _picture(values: Float[np.ndarray, " rank"], color: str, exact: bool, depth: int) -> str:
    """Draw the values of one bond; hollow dots where they are not those of a cut."""
    shown = _shown(values)
    floor = _HEIGHT - _BELOW

    def at(k: float, y: float) -> tuple[float, float]:
        across = (k + 0.5) / max(len(values), 1)
        return _LEFT + across * (_WIDTH - _LEFT - 8), _ABOVE + (floor - _ABOVE) * -y / depth

    marks = [_rule(-y, at(0, -y)[1]) for y in _ticks(depth)]
    marks += [
        f"<text x='{at(k, 0)[0]:.1f}' y='{_HEIGHT - 6}' text-anchor='middle'>{k + 1}</text>"
        for k in sorted({0, len(values) - 1})
        if k >= 0
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in shown))
    marks.append(f"<polyline points='{line}' fill='none' stroke='{color}' stroke-opacity='.5'/>")
    fill = color if exact else "none"
    marks += [
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{fill}' stroke='{color}'/>"
        for x, y in (at(*point) for point in shown)
    ]
    return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'>{''.join(marks)}</svg>"


def _ticks(depth: int) -> Iterable[int]:
    return range(0, depth + 1, max(1, math.ceil(depth / 4)))


def _rule(decade: int, y: float) -> str:
    label = "1" if decade == 0 else f"1e{decade}"
    return (
        f"<line x1='{_LEFT}' x2='{_WIDTH - 8}' y1='{y:.1f}' y2='{y:.1f}' stroke='#8883'/>"
        f"<text x='{_LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{label}</text>"
    )
