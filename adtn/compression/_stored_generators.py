"""The generators in the folder of a compressed model, without the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .._checks import PathArgument, checked
from .._files import metadata_of
from ..errors import CompressError, FileFormatError, ModelFileError
from ..generator import Generator
from ..precision import Codes
from ._folder import stored_state
from ._storage import read_tensors

_INSIDE = ("generated", "whole")  # modules inside a layer that hold the cores


@checked(CompressError)
def read_generators(folder: PathArgument) -> dict[str, Generator]:
    """Read the generators of a compressed model with the parameters that its folder holds.

    Parameters
    ----------
    folder : path
        A folder that :func:`save_model` or ``adtn compress`` wrote.

    Returns
    -------
    dict of str to Generator
        By name of the weight.

    Raises
    ------
    CompressError
        If the folder contains no compressed model.
    ModelFileError
        If a file of the folder is missing, damaged or modified, or lacks the cores of a generator.

    Examples
    --------
    >>> import adtn, os, tempfile, torch
    >>> from adtn.compression import read_generators
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> report = adtn.compress(model, budget="3x")
    >>> folder = os.path.join(tempfile.mkdtemp(), "small")
    >>> adtn.save_model(model, folder, report)
    >>> list(read_generators(folder)) == list(report.generators)
    True
    """
    structures, content = stored_state(Path(folder))
    try:
        tensors = read_tensors(content, codes=True, others=True)
        aliases = {name: first for name, first in metadata_of(content).items() if first in tensors}
    except FileFormatError as error:
        raise ModelFileError(f"Cannot read the state in {folder}: {error}") from error
    places: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for name, x in {**tensors, **{name: tensors[first] for name, first in aliases.items()}}.items():
        module, _, leaf = name.rpartition(".")
        parts = module.split(".")
        if any(part in _INSIDE for part in parts):
            places[".".join(part for part in parts if part not in _INSIDE)][leaf] = x
    found: dict[str, Generator] = {}
    for name, structure in structures.items():
        module = name if name in places else name.rpartition(".")[0]  # a layer with one generator for several weights
        found[name] = _filled(name, structure, places.get(module, {}))
    return found


def _filled(name: str, structure: Generator, tensors: Mapping[str, np.ndarray]) -> Generator:
    """Return a generator with parameters from the tensors of its module."""
    found: dict[str, np.ndarray] = {}
    for core in structure.stored_names:
        key = core.replace(".", "_")
        keys = [key, f"frozen_{key}"] if core not in structure.codes else [f"codes_{key}"]
        if not (present := [k for k in keys if k in tensors]):
            raise ModelFileError(f"The state has no core {core!r} of {name!r}; expected one. Compress again.")
        found[core] = tensors[present[0]]
    try:
        if structure.precision is None:
            return structure.with_topology(structure.topology, found)
        codes = {core: Codes(x.shape, x.precision, found[core]) for core, x in structure.codes.items()}
        return structure.with_codes(structure.precision, codes)
    except ValueError as error:
        raise ModelFileError(f"The state does not fit the generator of {name!r}: {error} Compress again.") from error
