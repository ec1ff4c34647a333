"""A compressed model in a folder: generators, the rest of the state, and the report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .._checks import PathArgument, checked
from .._errors import CompressError
from ._compress import compress
from ._config import Config
from ._layer_files import load_layers, save_layers
from ._model import model_of
from ._report import CompressReport

# of a Hugging Face folder: what the new folder needs as well, and what it must not have
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "merges.*", "vocab.*")
_WEIGHTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def run_folder(
    source: Callable[[], Any] | Path,
    config: Config,
    out: Path,
    *,
    weights: Path | None = None,
    data: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    loss: Callable[..., Any] | None = None,
    score: Callable[[Any], Any] | None = None,
    device: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> CompressReport:
    """Make a model, load its dense weights, compress it, and save what came out.

    Parameters
    ----------
    source : callable or path
        Returns the dense model, or is the Hugging Face folder of one (``config.json`` and safetensors).
    config : Config
    out : path
        Folder: ``layers/`` with one file per finished local fit, ``generators/`` with the final ones,
        ``state.safetensors`` with the state of the model, ``report.json`` and ``report.html``; configuration and
        tokenizer are copied from a Hugging Face folder.
    weights : path, optional
        State of the dense model, ``.safetensors``.
    data, test, loss, score, device, progress
        See :func:`compress`.

    Raises
    ------
    CompressError
        If the weights do not fit the model.
    """
    if isinstance(source, Path) and out.resolve() == source.resolve():
        raise CompressError(f"Got out={out}, the folder of the dense model; take another one.")
    model = model_of(source, None).model if isinstance(source, Path) else source()
    if weights is not None:
        try:
            model_of(model, None).load(weights)
        except CompressError:
            raise
        except Exception as error:  # every framework has its own for files that are broken or of another model
            raise CompressError(f"Cannot load {weights} into {type(model).__name__}: {error}.") from error
    report = compress(
        model, config, data=data, test=test, loss=loss, score=score, device=device, folder=out / "layers",
        progress=progress,
    )  # fmt: skip
    save_layers(out / "generators", report.generators)
    model_of(model, None).save(out / "state.safetensors")
    for name in ("report.json", "report.html"):
        report.save(out / name)
    if isinstance(source, Path):
        for file in sorted({f for pattern in _BESIDE for f in source.glob(pattern)}):
            if file.name not in _WEIGHTS:
                shutil.copy2(file, out / file.name)
    return report


@checked(CompressError)
def load_pretrained(folder: PathArgument) -> Any:
    """The compressed model in a folder that ``adtn compress`` made of a Hugging Face folder.

    Parameters
    ----------
    folder : path

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode.

    Raises
    ------
    CompressError
        If the folder holds no compressed model.
    MissingDependencyError
        Without transformers.
    """
    if not (Path(folder) / "generators").exists():
        raise CompressError(f"Got {folder}, which holds no generators; pass a folder that 'adtn compress' wrote.")
    return load_model(model_of(Path(folder), None).model, folder)


@checked(CompressError)
def load_model(model: Any, folder: PathArgument) -> Any:
    """Make a dense model the compressed one that :func:`run_folder` or ``adtn compress`` saved.

    Parameters
    ----------
    model : torch.nn.Module
        The dense model with any numbers; changed in place.
    folder : path
        Written by ``adtn compress``.

    Returns
    -------
    torch.nn.Module
        The same model.

    Raises
    ------
    CompressError
        If the folder holds no compressed model, or one of another model, which is then left as it was.
    """
    generators = load_layers(Path(folder) / "generators", "generators; pass a folder that 'adtn compress' wrote")
    adapter = model_of(model, None)
    try:
        adapter.install(generators)
        adapter.load(Path(folder) / "state.safetensors")
    except BaseException as error:
        adapter.restore()
        if isinstance(error, OSError | RuntimeError | KeyError | AttributeError):
            raise CompressError(f"Cannot load {folder} into {type(model).__name__}: {error}.") from error
        raise
    return model
