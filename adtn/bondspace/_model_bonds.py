"""The bonds of all generators of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from .._files import write_bytes
from ..errors import TopologyError
from ..generator import Generator
from ._bonds import Bonds
from ._table import tables


class ModelBonds(Mapping[str, Bonds]):
    """The bonds of every generator of a model that has any, by name of the weight.

    Parameters
    ----------
    generators : mapping of str to Generator
        As :func:`adtn.compression.read_generators` reads them from a folder, or ``report.generators``.

    Attributes
    ----------
    without : dict of str to str
        The other weights, and why there is nothing to show.

    Examples
    --------
    >>> import adtn
    >>> from adtn.bondspace import ModelBonds
    >>> both = {"fc1": adtn.Generator((16, 16), adtn.TT(bond=2)), "fc2": adtn.Generator((4, 4), adtn.Dense())}
    >>> found = ModelBonds(both)
    >>> list(found), found.without
    (['fc1'], {'fc2': 'no bonds'})
    """

    def __init__(self, generators: Mapping[str, Generator]) -> None:
        self._found: dict[str, Bonds] = {}
        self.without: dict[str, str] = {}
        for name, generator in generators.items():
            bonds = Bonds(generator)
            try:
                for bond in bonds:
                    bond.entropy  # noqa: B018 (cached)
            except TopologyError as error:  # its tensors are too large
                self.without[name] = str(error)
                continue
            if len(bonds):
                self._found[name] = bonds
            else:
                self.without[name] = "no bonds"

    def __getitem__(self, name: str) -> Bonds:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def table(self) -> str:
        """Render a table of plain text for every weight, and a line for every reason to have none."""
        shown = {f"{name}  {bonds.generator!r}": bonds for name, bonds in self.items()}
        reasons: dict[str, list[str]] = {}
        for name, why in self.without.items():
            reasons.setdefault(why, []).append(name)
        lines = [f"{why}: {', '.join(names)}" for why, names in reasons.items()]
        return "\n\n".join(part for part in (tables(shown), "\n".join(lines)) if part)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"ModelBonds({len(self)} weights, {sum(map(len, self.values()))} bonds)"

    def to_json(self) -> str:
        """Convert to JSON: what :meth:`Bonds.to_json` returns, by weight, and the weights without bonds."""
        found = {name: json.loads(bonds.to_json()) for name, bonds in self.items()}
        return json.dumps({"weights": found, "without": self.without}, indent=1)

    def to_html(self) -> str:
        """Render a self-contained page with a picture of every spectrum."""
        from ._page import pages

        return pages(self, self.without)

    def save(self, path: str | Path) -> None:
        """Write JSON, or a self-contained page if the name ends in ``.html``, atomically."""
        text = self.to_html() if Path(path).suffix == ".html" else self.to_json() + "\n"
        write_bytes(path, text.encode())
