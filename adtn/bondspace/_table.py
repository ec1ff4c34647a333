"""A table of bonds in plain text."""

from __future__ import annotations

from collections.abc import Iterable

from ._bond import Bond

_HEAD = ("bond", "kind", "between", "dim", "entropy", "rank", "particip.", "gauge", "exact", "legs")
_WIDEST = 34


def table(bonds: Iterable[Bond]) -> str:
    """Render bonds as lines of a table, with what the reader must know below it."""
    bonds = list(bonds)
    rows = [_HEAD, *map(_row, bonds)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_HEAD))]
    numbers = range(3, 7)
    lines = [
        "  ".join(x.rjust(w) if k in numbers else x.ljust(w) for k, (x, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    notes = []
    if any(not bond.exact for bond in bonds):
        notes.append("~: on a loop, by belief propagation; such a spectrum does not predict the error of a truncation")
    if any(bond.kind == "state" for bond in bonds):
        notes.append("state: singular values of the state along that leg; the weight can have more across its legs")
    return "\n".join([*(line.rstrip() for line in lines), *notes])


def _row(bond: Bond) -> tuple[str, ...]:
    return (
        bond.name,
        bond.kind,
        _short("-".join(bond.ends)),
        str(bond.dim),
        f"{bond.entropy:.3f}",
        f"{bond.effective_rank:.2f}",
        f"{bond.participation:.2f}",
        bond.gauge,
        "yes" if bond.exact else "~",
        _short(" ".join(bond.legs)),
    )


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
