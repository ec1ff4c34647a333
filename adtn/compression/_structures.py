"""The structures of many generators as one short string: they are alike, so that they compress well."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping

from ..errors import FileFormatError
from ..generator import Generator
from ._storage import structure_from_json, structure_to_json

_LARGEST = 1 << 28  # bytes of JSON, so that a small string cannot fill the memory


def structures_to_text(generators: Mapping[str, Generator]) -> str:
    """Describe generators without their parameters, by name."""
    content = {name: structure_to_json(generator) for name, generator in generators.items()}
    return base64.b64encode(zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)).decode()


def structures_from_text(text: object) -> dict[str, Generator]:
    """Make the generators that :func:`structures_to_text` described, with zeros as parameters.

    Raises
    ------
    FileFormatError
        If the string does not describe generators.
    """
    try:
        reader = zlib.decompressobj()
        data = reader.decompress(base64.b64decode(str(text), validate=True), _LARGEST)
        if reader.unconsumed_tail or not reader.eof:
            raise ValueError("it is too long, or cut off")
        content = dict(json.loads(data))
    except (binascii.Error, zlib.error, ValueError, TypeError, RecursionError) as error:
        raise FileFormatError(f"The index does not describe generators ({error}). Get the file again.") from error
    return {name: structure_from_json(structure) for name, structure in content.items()}
