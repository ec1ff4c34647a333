"""A compressed model in a folder: generators, the rest of the state, and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .._errors import CompressError
from ._compress import compress
from ._config import Config
from ._model import model_of
from ._report import CompressReport
from ._storage import load, save


def run_folder(
    factory: Callable[[], Any],
    config: Config,
    out: Path,
    *,
    weights: Path | None = None,
    data: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    device: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> CompressReport:
    """Make a model, load its dense weights, compress it, and save what came out.

    Parameters
    ----------
    factory : callable
        Returns the dense model.
    config : Config
    out : path
        Folder: ``layers/`` with one file per finished local fit, ``generators/`` with the final ones,
        ``state.safetensors`` with the state of the model, ``report.json`` and ``report.html``.
    weights : path, optional
        State of the dense model, ``.safetensors``.
    data, test, device, progress
        See :func:`compress`.

    Raises
    ------
    CompressError
        If the weights do not fit the model.
    """
    model = factory()
    if weights is not None:
        try:
            model_of(model, None).load(weights)
        except (OSError, RuntimeError, KeyError) as error:
            raise CompressError(f"Cannot load {weights} into {type(model).__name__}: {error}.") from error
    report = compress(model, config, data=data, test=test, device=device, folder=out / "layers", progress=progress)
    (out / "generators").mkdir(parents=True, exist_ok=True)
    for name, generator in report.generators.items():
        save(out / "generators" / f"{name}.safetensors", generator)
    model_of(model, None).save(out / "state.safetensors")
    for name in ("report.json", "report.html"):
        report.save(out / name)
    return report


def load_model(model: Any, folder: str | Path) -> Any:
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
    files = sorted(Path(folder).glob("generators/*.safetensors"))
    if not files:
        raise CompressError(f"Got {folder}, which holds no generators; pass a folder that 'adtn compress' wrote.")
    adapter = model_of(model, None)
    try:
        adapter.install({file.name.removesuffix(".safetensors"): load(file) for file in files})
        adapter.load(Path(folder) / "state.safetensors")
    except (OSError, RuntimeError, KeyError, AttributeError) as error:
        adapter.restore()
        raise CompressError(f"Cannot load {folder} into {type(model).__name__}: {error}.") from error
    return model
