"""The state of a compressed model as one file: its metadata, its size, and the precisions of what is not generated."""

from __future__ import annotations

from collections.abc import Mapping

from .._files import KEY, header_text
from ..generator import Generator
from ..precision import Precision
from ._model import Model
from ._structures import structures_to_text

FORMAT = 5
"""The newest format. The first has no header, and the first two a folder with a file for every generator."""
KIND = "state of a compressed model"
HEADER_BYTES = 240
"""An estimate of what the headers of a file need per weight."""
_WITH_CODES = 4  # the formats of files without permutations and entropy codes: with codes of what is not generated,
_WITHOUT_CODES = 3  # and without, which an older adtn can read


def metadata_of_state(
    generators: Mapping[str, Generator], rest: Precision | None = None, beside: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the metadata of the file of a state.

    Parameters
    ----------
    generators : mapping of str to Generator
        Their structures are stored.
    rest : Precision, optional
        The precision of what is not generated.
    beside : mapping of str to str, optional
        The digests of other files of the model by name.
    """
    version = _WITH_CODES if rest is not None and rest.is_integer else _WITHOUT_CODES
    if any(_is_newest(generator) for generator in generators.values()):
        version = FORMAT
    return {
        KEY: header_text(KIND, version, structures=structures_to_text(generators), beside=dict(beside or {})),
    }


def _is_newest(generator: Generator) -> bool:
    """Return whether an older adtn cannot read a generator."""
    precision = generator.precision
    return bool(generator.permutations) or (precision is not None and (precision.is_coded or precision.ordered))


def state_bytes(
    model: Model,
    generators: Mapping[str, Generator],
    rest: Precision | None,
    beside: Mapping[str, str] | None = None,
) -> int:
    """Return the size of the file of a model that holds these generators, headers included."""
    return len(model.content(metadata_of_state(generators, rest, beside), rest))
