"""Compressed models in folders: the state, with the structures of its generators, and the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._atomic import locked_folder, write_atomic
from .._checks import PathArgument, checked
from .._files import check_writable, read_header, read_whole, write_or_rescue
from ..errors import CompressError, FileFormatError, ModelFileError
from ..generator import Generator
from ._compress import compress_with
from ._config import Config
from ._layer_files import load_layers, read_files, remove_cached, remove_layers
from ._model import Model, model_of
from ._report import CompressReport
from ._state import FORMAT, KIND, metadata_of_state
from ._storage import STRUCTURES
from ._structures import structures_from_text

_STATE = "state.safetensors"
_GENERATORS = "generators"
_CACHE = "layers"
# files of a Hugging Face folder that the new folder needs as well, and files that it must not have
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "merges.*", "vocab.*")
_WEIGHTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@checked(CompressError)
def run_folder(
    source: Callable[[], Any] | Path,
    config: Config,
    out: PathArgument,
    *,
    weights: Path | None = None,
    data: Iterable[Any] | None = None,
    validation: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    loss: Callable[..., Any] | None = None,
    score: Callable[[Any], Any] | None = None,
    device: str | None = None,
    progress: Callable[[str], None] | bool | None = None,
    baselines: bool = False,
) -> CompressReport:
    """Make a model, load its dense weights, compress it, and save the result.

    Parameters
    ----------
    source : callable or path
        A function that returns the dense model, or a Hugging Face folder (``config.json`` and safetensors).
    config : Config
    out : path
        A folder with ``state.safetensors``, which has the state of the model and the structures of its generators,
        ``report.json`` and ``report.html``; configuration and tokenizer are copied from a Hugging Face folder. An older
        result in it is replaced as a whole. Until the result is written, ``layers/`` in it caches finished local fits
        and checkpoints, with which a repeated call continues an interrupted one; a call after that starts again.
    weights : path, optional
        A file with the state of the dense model, ``.safetensors``.
    data, validation, test, loss, score, device, progress, baselines
        See :func:`compress`.

    Raises
    ------
    CompressError
        If the weights do not match the model.
    OutputError
        If ``out`` cannot be written to: before any work, or afterwards, with the folder where the result is instead.
    """
    out = check_writable(out, "out", "folder")
    if isinstance(source, Path) and out.resolve() == source.resolve():
        raise CompressError(f"Got out={out}, the folder of the dense model; pass another folder.")
    if isinstance(source, Path) and _says_how(source):
        raise CompressError(
            f"Got {source}, a model that is compressed already, whose generators the new file would not describe; pass "
            "the dense model, with all targets at once."
        )
    model = model_of(source, None).model if isinstance(source, Path) else source()
    if weights is not None:
        _load(model_of(model, None), weights)
    report = compress_with(
        _digests(_beside(source if isinstance(source, Path) else None)),
        model,
        config,
        data=data,
        validation=validation,
        test=test,
        loss=loss,
        score=score,
        device=device,
        folder=out / _CACHE,
        progress=progress,
        baselines=baselines,
    )

    def write(place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        with locked_folder(place):
            _write(place, model, report, source if isinstance(source, Path) else None)

    write_or_rescue(out, write)
    remove_cached(out / _CACHE)
    return report


@checked(CompressError)
def save_model(model: Any, folder: PathArgument, report: CompressReport) -> None:
    """Save a compressed model as the file that its budget was for, with its report.

    Parameters
    ----------
    model : torch.nn.Module or flax.nnx.Module
        The model that :func:`adtn.compress` changed; its present parameters are saved.
    folder : path
        A folder for ``state.safetensors``, ``report.json`` and ``report.html``; an older result in it is replaced.
    report : CompressReport
        The report of the compression.

    Raises
    ------
    CompressError
        If the model has another size than that of the report.
    OutputError
        If the folder cannot be written to; the error names the folder where the result is instead.

    Examples
    --------
    >>> import adtn, os, tempfile, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> report = adtn.compress(model, budget="3x")
    >>> folder = os.path.join(tempfile.mkdtemp(), "small")
    >>> adtn.save_model(model, folder, report)
    >>> os.path.getsize(os.path.join(folder, "state.safetensors")) == report.file_bytes
    True
    """
    out, adapter = check_writable(folder, "folder", "folder"), model_of(model, None)
    params, size = adapter.sizes()
    if (params, size) != (report.after.params, report.after.bytes):
        raise CompressError(
            f"Got a model of {params:,} parameters in {size:,} bytes with a report of {report.after.params:,} in "
            f"{report.after.bytes:,}; pass the model that was compressed, and its report."
        )

    def write(place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        with locked_folder(place):
            _write(place, model, report, None)

    write_or_rescue(out, write)


def _write(out: Path, model: Any, report: CompressReport, source: Path | None) -> None:
    """Write the state last, as it refers to the other files; until then, the folder contains the old model."""
    older, beside = _older(out), _beside(source)
    for name, content in beside.items():
        write_atomic(out / name, content)
    metadata = metadata_of_state(report.generators, report.rest, _digests(beside))
    model_of(model, None).save(out / _STATE, metadata, report.rest)
    remove_layers(out / _GENERATORS)
    for name in older - set(beside):
        (out / Path(name).name).unlink(missing_ok=True)
    for name in ("report.json", "report.html"):
        report.save(out / name)


def _beside(source: Path | None) -> dict[str, bytes]:
    """Read the files of a Hugging Face folder that the new folder needs as well."""
    return {
        file.name: file.read_bytes()
        for pattern in _BESIDE
        for file in (source.glob(pattern) if source else ())
        if file.name not in _WEIGHTS
    }


def _digests(beside: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(beside.items())}


def _older(out: Path) -> set[str]:
    """List the files that an earlier result copied from its Hugging Face folder."""
    try:
        return set((_state_header(out / _STATE) or {}).get("beside", {}))
    except FileFormatError:
        return set()


def _state_header(path: Path) -> dict[str, Any] | None:
    """Read the header of a verified state; empty for the first format, or for files of other programs.

    Raises
    ------
    ModelFileError
        If the file is damaged.
    """
    try:
        return read_header(read_whole(path, "the state of a model"), KIND, FORMAT)
    except FileFormatError as error:
        raise ModelFileError(f"Cannot load {path}: {error} Get the file again, or compress again.") from error


def _load(adapter: Model, path: Path) -> None:
    """Load the state from a file.

    Raises
    ------
    CompressError
        If the file is damaged, or does not match the model.
    """
    _state_header(path)
    try:
        adapter.load(path)
    except Exception as error:  # the file is of another model, or safetensors refuses it
        raise ModelFileError(f"Cannot load {path} into {type(adapter.model).__name__}: {error}.") from error


@checked(CompressError)
def load_pretrained(folder: PathArgument, *, allow_slower: bool = False) -> Any:
    """Load the compressed model in a folder.

    Parameters
    ----------
    folder : path
        A folder that ``adtn compress`` made of a Hugging Face folder, or that ``save_pretrained`` of a compressed model
        (and so a Trainer) wrote.
    allow_slower : bool
        See :func:`load_model`.

    Returns
    -------
    transformers.PreTrainedModel
        The model, in evaluation mode.

    Raises
    ------
    CompressError
        If the folder holds no compressed model.
    MissingDependencyError
        If transformers is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import adtn
    >>> from adtn.compression import run_folder
    >>> try:
    ...     from transformers import GPT2Config, GPT2LMHeadModel
    ...     dense, small = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp()) / "small"
    ...     config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
    ...     GPT2LMHeadModel(config).save_pretrained(dense)
    ...     config = adtn.Config(targets=["Conv1D"], topology=adtn.LowRank(bond=12), recipe="closed-form")
    ...     _ = run_folder(dense, config, small)
    ...     name = type(adtn.load_pretrained(small).transformer.h[0].mlp.c_fc).__name__
    ... except ImportError:
    ...     name = "ADTNLinear"
    >>> name
    'ADTNLinear'
    """
    with locked_folder(Path(folder), shared=True):
        if not _is_result(Path(folder)) and _says_how(Path(folder)):
            return model_of(Path(folder), None).model
        generators = _generators(Path(folder))
        return _loaded(model_of(Path(folder), None).model, Path(folder), generators, not allow_slower)


def _is_result(folder: Path) -> bool:
    """Return whether :func:`run_folder` wrote this folder, in any format."""
    return any((folder / name).exists() for name in (_STATE, _GENERATORS))


def _says_how(folder: Path) -> bool:
    """Return whether the configuration describes the structures of generators."""
    try:
        return STRUCTURES in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


@checked(CompressError)
def load_model(model: Any, folder: PathArgument, *, allow_slower: bool = False) -> Any:
    """Turn a dense model into the compressed one that :func:`run_folder` or ``adtn compress`` saved.

    Parameters
    ----------
    model : torch.nn.Module
        The dense model with any parameters, which is changed in place.
    folder : path
        A folder that ``adtn compress`` wrote.
    allow_slower : bool
        Whether layers that are stored as integers hold these only and decode them in every call. It takes less memory
        and more time; by default, they are decoded once.

    Returns
    -------
    torch.nn.Module
        The same model.

    Raises
    ------
    CompressError
        If the folder contains no compressed model, or that of another model; ``model`` is unchanged then.
    ModelFileError
        If a file of the folder is missing, damaged or modified.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import adtn, torch
    >>> from adtn.compression import run_folder
    >>> def make():
    ...     return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> folder = Path(tempfile.mkdtemp()) / "small"
    >>> config = adtn.Config(targets=["0"], topology=adtn.LowRank(bond=24), recipe="closed-form")
    >>> _ = run_folder(make, config, folder)
    >>> type(adtn.load_model(make(), folder)[0]).__name__
    'ADTNLinear'
    """
    with locked_folder(Path(folder), shared=True):
        return _loaded(model, Path(folder), _generators(Path(folder)), not allow_slower)


def _loaded(model: Any, folder: Path, generators: Mapping[str, Generator], decode_once: bool) -> Any:
    adapter = model_of(model, None)
    try:
        adapter.install(generators)
        _load(adapter, folder / _STATE)
        bad = [n for n, g in adapter.generators().items() if not all(np.isfinite(x).all() for x in g.params.values())]
        if bad:
            raise ModelFileError(f"{folder} has parameters that are NaN or infinite, in {bad[:5]}; expected none.")
        adapter.decode_once(decode_once)
    except BaseException as error:
        adapter.restore()
        if isinstance(error, OSError | RuntimeError | KeyError | AttributeError):
            raise CompressError(f"Cannot load {folder} into {type(model).__name__}: {error}.") from error
        raise
    return model


def stored_state(folder: Path) -> tuple[dict[str, Generator], bytes]:
    """Read the structures of the generators in a folder, and the content of the file of the state, verified."""
    with locked_folder(folder, shared=True):
        return _generators(folder), read_whole(folder / _STATE, "the state of a model", ModelFileError)


def _generators(folder: Path) -> dict[str, Generator]:
    """Read the generators to which the state belongs."""
    what = "generators; pass a folder that 'adtn compress' wrote"
    if not _is_result(folder):
        raise CompressError(f"Got {folder}, which holds no {what}.")
    header = _state_header(folder / _STATE)
    if header is None:
        if not (folder / _GENERATORS).is_dir():
            raise ModelFileError(f"Got {folder / _STATE}, which adtn did not write; get the folder again.")
        return load_layers(folder / _GENERATORS, what)
    wanted = dict(header.get("beside", {})).get("config.json")
    config = folder / "config.json"
    if wanted and hashlib.sha256(read_whole(config, "that of the model", ModelFileError)).hexdigest() != wanted:
        raise ModelFileError(f"{config} is not the file that was written with the model; compress again.")
    if "layers" in header:
        return read_files(folder / _GENERATORS, header["layers"])
    try:
        return structures_from_text(header.get("structures"))
    except FileFormatError as error:
        raise ModelFileError(f"Cannot load {folder / _STATE}: {error}") from error
