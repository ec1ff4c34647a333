"""A table of bonds in plain text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ._bond import Bond

HEAD = ("bond", "kind", "between", "dim", "entropy", "rank", "particip.", "gauge", "exact", "legs")
_NUMBERS = range(3, 7)
_WIDEST = 34


def table(bonds: Iterable[Bond]) -> str:
    """Render bonds as lines of a table, with what the reader must know below it."""
    bonds = list(bonds)
    return "\n".join([*_lines(bonds), *notes(bonds)])


def tables(named: Mapping[str, Sequence[Bond]]) -> str:
    """Render a table for each of several generators by name, with what the reader must know below them."""
    parts = ["\n".join([name, *(f"  {line}" for line in _lines(bonds))]) for name, bonds in named.items()]
    remarks = notes([bond for bonds in named.values() for bond in bonds]) if named else []
    return "\n\n".join([*parts, *(["\n".join(remarks)] if remarks else [])])


def _lines(bonds: Sequence[Bond]) -> list[str]:
    rows = [HEAD, *map(row, bonds)]
    widths = [max(len(one[k]) for one in rows) for k in range(len(HEAD))]
    lines = [
        "  ".join(x.rjust(w) if k in _NUMBERS else x.ljust(w) for k, (x, w) in enumerate(zip(one, widths, strict=True)))
        for one in rows
    ]
    return [line.rstrip() for line in lines]


def notes(bonds: Iterable[Bond]) -> list[str]:
    """List what the reader of these spectra must know."""
    bonds = list(bonds)
    found: list[str] = []
    if any(not bond.exact for bond in bonds):
        found.append("~: on a loop, by belief propagation; such a spectrum does not predict the error of a truncation")
    if any(bond.kind == "state" for bond in bonds):
        found.append("state: singular values of the state along that leg; the weight can have more across its legs")
    if not bonds:
        found.append("no bonds: all cores belong to one tensor")
    return found


def row(bond: Bond) -> tuple[str, ...]:
    """Return the cells of one bond."""
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
