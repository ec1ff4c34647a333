"""Compression of a whole model in one call."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .._checks import PathArgument, checked, shown
from .._files import check_writable
from ..backends import check_device
from ..errors import CompressError, LayoutError, QualityWarning, TopologyError
from ..optim import Callback, Observer, check_callbacks
from ..topology import Dense
from ._budget import Budget
from ._config import Config
from ._local import Executor, LocalTask
from ._model import Layer, Model, model_of
from ._progress import Progress
from ._report import CompressReport
from ._result import Result, cost_of
from ._rows import ModelCost
from ._run import CompressionRun
from ._samples import first_batches
from ._share import joined, mean_moment, members_of, shared_layout, sharing, with_groups
from ._stage import Stage
from ._state import HEADER_BYTES, state_bytes

_SMALLER = 4  # times, that layers become by default


@checked(CompressError)
def compress(
    model: Any,
    config: Config | None = None,
    *,
    budget: Budget | str | None = None,
    data: Iterable[Any] | None = None,
    validation: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    loss: Callable[..., Any] | None = None,
    score: Callable[[Any], Any] | None = None,
    device: str | None = None,
    executor: Executor | None = None,
    folder: PathArgument | None = None,
    progress: Callable[[str], None] | bool | None = None,
    callbacks: Sequence[Callback | Observer] = (),
    baselines: bool = False,
) -> CompressReport:
    """Replace layers of a model by generated ones, in place.

    Without a topology and without a budget, the chosen layers become four times smaller in bytes, by low-rank and
    similar forms and by integers, whichever change the outputs of the model least.

    Parameters
    ----------
    model : torch.nn.Module or flax.nnx.Module
        The model, which is changed in place; if an error occurs, it is restored.
    config : Config, optional
        The layers to compress, their topologies or a budget, and the recipe.
    budget : Budget or str, optional
        The budget, instead of the config's, also as ``"4x"``, ``"25%"`` (of the file's bytes) or ``"2MB"``: see
        :meth:`Budget.parse`.
    data : iterable, optional
        Batches: ``(inputs, labels)``, or mappings with ``"labels"`` for models that take keywords. They are read more
        than once: pass a list or a data loader, not a generator. A single batch needs no list around it.
    validation : iterable, optional
        Batches that are not trained on: a training whose loss on them does not fall is discarded. By default, the first
        batches of the data.
    test : iterable, optional
        Test batches, for the loss before and after, and for the accuracy if labels are indices of classes.
    loss : callable, optional
        ``loss(model, batch)``; by default, the cross entropy of the outputs and the labels. JAX traces
        it.
    score : callable, optional
        ``score(model)``, where larger is better, such as a mean intersection over union: measured before and after in
        evaluation mode, and a budget of ``accuracy_loss`` refers to it instead of the accuracy.
    device : str, optional
        The device of local fits, such as ``"torch:cuda:0"``; by default NumPy's. The model is not moved.
    executor : optional
        An executor of :mod:`concurrent.futures` or a Dask client that runs local fits; by default, they run in turn.
        With an executor, ``"distill-local"`` trains all layers at the same time, with inputs of the dense model.
    folder : path, optional
        A folder where finished layers are cached and found when the call is repeated. An interrupted training continues
        from its last checkpoint, with the same sequence of data. With other data, this is refused; with
        another config, loss or model, training starts from the beginning.
    progress : callable or bool, optional
        A function that is called with a line for every layer, and regularly during training; or whether to show the
        stages with the time left on standard error. By default they are shown on a terminal only.
    callbacks : sequence of callable or Observer
        ``callback(step, loss)`` is called after every step of a training of the whole model; a true result ends the
        training. Observers, such as :class:`adtn.bondspace.Evolution`, see the model before the first step and after
        every so many, in evaluation mode.
    baselines : bool
        Whether to measure other ways to make the model as small, for the report: low-rank pairs of the same bytes
        (also after the same training), all layers as integers, and as entropy codes of the same bytes, a scaled
        identity and frozen random weights, and the dense model after the same training. This takes several times as
        long, and needs ``test`` or ``score``.

    Returns
    -------
    CompressReport
        Parameters, bytes, errors, accuracy and time before and after, and the layers that stay dense, with reasons.

    Raises
    ------
    CompressError
        If no layer can be replaced, or the recipe needs data and there are none.
    OutputError
        If the folder cannot be written to; a disk that becomes full later only causes a warning.

    Warns
    -----
    QualityWarning
        If a layer has a relative error above 0.5 and nothing was trained, or if the model loses more than 2 points of
        accuracy (of a score also 5 %), or if its loss on the test data grows by more than 10 %.

    Examples
    --------
    >>> import adtn, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> data = [(torch.randn(32, 64), torch.arange(32) % 10)]
    >>> config = adtn.Config(targets=["0"], topology=adtn.TTN(bond=2), steps=20, tune_steps=20)
    >>> report = adtn.compress(model, config, data=data)
    >>> report.layers[0].ratio > 10
    True
    """
    return compress_with(
        {},
        model,
        config,
        budget=budget,
        data=data,
        validation=validation,
        test=test,
        loss=loss,
        score=score,
        device=device,
        executor=executor,
        folder=folder,
        progress=progress,
        callbacks=callbacks,
        baselines=baselines,
    )


def compress_with(
    beside: Mapping[str, str],
    model: Any,
    config: Config | None = None,
    *,
    budget: Budget | str | None = None,
    data: Iterable[Any] | None = None,
    validation: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    loss: Callable[..., Any] | None = None,
    score: Callable[[Any], Any] | None = None,
    device: str | None = None,
    executor: Executor | None = None,
    folder: PathArgument | None = None,
    progress: Callable[[str], None] | bool | None = None,
    callbacks: Sequence[Callback | Observer] = (),
    baselines: bool = False,
) -> CompressReport:
    """Compress a model whose file lists the digests of other files, which count in a budget of bytes.

    Parameters
    ----------
    beside : mapping of str to str
        The digests by name of the file.
    model, config, budget, data, validation, test, loss, score, device, executor, folder, progress, callbacks, baselines
        See :func:`compress`.
    """
    config = _with_budget(config or Config(), budget)
    check_callbacks(callbacks, CompressError)
    data, validation, test = _batches("data", data), _batches("validation", validation), _batches("test", test)
    folder = check_writable(folder, "folder", "folder") if folder is not None else None
    stages = config.stages(data is not None)
    device = _fit_device(device)
    _check_measures(config, baselines, has_quality=test is not None or score is not None)
    adapter = model_of(model, None)
    began = time.monotonic()
    chosen, dense = _choose_layers(adapter, config)
    trained = [stage for stage in stages if stage.trains]
    if trained:
        adapter.check(config.tuning(trained[0]))
    before = cost_of(adapter, test, loss, score)
    if before.score is not None and not math.isfinite(before.score):
        raise CompressError(
            f"The function score= returned {before.score} for the dense model; expected a finite number, with which "
            "the compressed one can be compared. Correct the function, or the data that it reads."
        )
    limited = _limited(config, adapter, chosen, before, beside)
    tasks = _tasks(adapter, limited, chosen, data, device, stages)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    run = CompressionRun(
        adapter=adapter,
        config=limited,
        stages=stages,
        layers=[layer for layer, _ in chosen],
        tasks=tasks,
        data=data,
        test=test,
        validation=validation,
        loss=loss,
        score=score,
        executor=executor,
        folder=folder,
        say=Progress(progress),
        narrows=limited.budget is config.budget,
        joins=not baselines,
        beside=beside,
        callbacks=tuple(callbacks),
        dense_params=before.params,
    )
    try:
        with run.say:
            result = Result.of(run, before, baselines=baselines)
        faults = result.faults(trained=bool(trained))
        for fault in faults:
            warnings.warn(fault, QualityWarning, stacklevel=4)  # the caller of the checked function
    except BaseException:
        adapter.restore()
        raise
    run.remove_checkpoints()
    return result.report(dense, title=type(model).__name__, seconds=time.monotonic() - began, faults=faults)


def _with_budget(config: Config, budget: Budget | str | None) -> Config:
    """Return the config with a budget that was passed beside it."""
    if budget is None:
        return config
    if config.budget is not None:
        raise CompressError(f"Got budget={shown(budget)} beside a config with {config.budget}; pass one of them.")
    return replace(config, budget=Budget.parse(budget) if isinstance(budget, str) else budget)


def _usual_budget(model: Model, layers: Sequence[Layer], beside: Mapping[str, str]) -> Budget:
    """Return the budget with which these layers have a quarter of their bytes, and everything else what it has."""
    shapes = [(layer.itemsize, shape) for layer in layers for shape in layer.weights.values()]
    dense = sum(itemsize * math.prod(shape) for itemsize, shape in shapes)
    headers = HEADER_BYTES * (1 + len(shapes))
    return Budget(bytes=state_bytes(model, {}, None, beside) - dense + dense // _SMALLER + headers)


def _fit_device(device: str | None) -> str:
    """Return the device of local fits."""
    device = "numpy:cpu" if device is None else device
    check_device(device, "float32")
    return device


Chosen = Sequence[tuple[Layer, Mapping[str, np.ndarray]]]
"""Layers that are replaced, with their weights by name."""


def _choose_layers(adapter: Model, config: Config) -> tuple[Chosen, dict[str, str]]:
    """Choose the layers to replace, and give the reasons why others stay dense."""
    candidates, dense = config.select(adapter.layers())
    chosen: list[tuple[Layer, Mapping[str, np.ndarray]]] = []
    whole = {layer.name: len(layer.weights) for layer in candidates}
    for layer in with_groups(config, candidates, dense):
        why = _impossible(layer, config)
        weights = {} if why else {name: adapter.weight(name) for name in members_of(layer)}
        why = why or _unfit(weights.values())
        if why and len(layer.weights) < whole.get(layer.name, 2):
            raise CompressError(f"Got {layer.name!r} in share, which {why}; leave it out, or change its options.")
        if why:
            dense[layer.name] = why
        elif layer.group:
            chosen.append((layer, {n: joined(list(weights.values()), shape) for n, shape in layer.weights.items()}))
        else:
            chosen.append((layer, weights))
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in dense.items())
        raise CompressError(f"No layer can be replaced: {reasons}. Change targets, exclude or smallest.")
    if any(not layer.name for layer, _ in chosen):
        raise CompressError(
            "Got a model that is one layer, which cannot be replaced in place; use a layer of "
            "adtn_backends.torch or adtn_backends.jax."
        )
    return chosen, dense


def _limited(config: Config, model: Model, chosen: Chosen, before: ModelCost, beside: Mapping[str, str]) -> Config:
    """Return the config with the usual budget if it has neither a topology nor a budget."""
    if config.chooses_formats and config.budget is None:
        return replace(config, budget=_usual_budget(model, [layer for layer, _ in chosen], beside))
    if _limits_accuracy(config) and before.quality is None:
        raise CompressError(
            "Got a budget of accuracy_loss for labels that are not indices of classes; pass score= as well."
        )
    return config


def _batches(name: str, data: Any) -> Iterable[Any] | None:
    """Return the batches; a single batch without a list is put into one."""
    if data is None:
        return None
    if isinstance(data, Mapping) and "labels" in data:
        return [data]
    if isinstance(data, tuple) and len(data) == 2 and all(hasattr(part, "shape") for part in data):
        return [data]
    if isinstance(data, Mapping) or hasattr(data, "shape"):
        raise CompressError(f"Got {name}={shown(data)}; expected batches, such as [(inputs, labels), ...].")
    batches = iter(data)
    if next(batches, None) is None:
        raise CompressError(f"Got {name} without a batch, or exhausted; pass a list or a DataLoader.")
    if batches is data:
        raise CompressError(
            f"Got {name}={shown(data)}, whose batches can be read only once; pass a list or a DataLoader."
        )
    return data


def _limits_accuracy(config: Config) -> bool:
    return config.budget is not None and config.budget.accuracy_loss is not None


def _check_measures(config: Config, baselines: bool, has_quality: bool) -> None:
    """Refuse what cannot be measured, or compared."""
    if _limits_accuracy(config) and not has_quality:
        raise CompressError("Got a budget of accuracy_loss without test=; pass the data that measure it, or score=.")
    if baselines and not has_quality:
        raise CompressError("Got baselines=True without test=; pass the data that compare them, or score=.")
    if baselines and config.share:
        raise CompressError(
            "Got baselines=True with share; baselines replace single weights. Compare two calls instead."
        )
    if baselines and config.mode == "adapter":
        raise CompressError("Got baselines=True with mode='adapter'; baselines replace weights. Leave it out.")


def _tasks(
    adapter: Model,
    config: Config,
    chosen: Chosen,
    data: Iterable[Any] | None,
    device: str,
    stages: Sequence[Stage],
) -> dict[str, LocalTask]:
    """Make one task per weight; layouts are checked before anything is fitted."""
    fit = next((stage for stage in reversed(stages) if stage.is_local and stage.steps), None)
    closed = any(stage.name == "closed-form" for stage in stages)
    by_data = [
        stage for stage in stages if stage.name == "closed-form" or (stage.name == "reconstruct-data" and stage.steps)
    ]
    planned = [(name, weight, config.options_of(layer)) for layer, own in chosen for name, weight in own.items()]
    groups = {layer.name: list(members_of(layer).values()) for layer, _ in chosen if layer.group}
    layouts = {
        name: shared_layout(own, groups[name]) if name in groups else own.layout(weight.shape)
        for name, weight, own in planned
    }
    moments: dict[str, np.ndarray | None] = {}
    if by_data and data is not None:
        most = min((stage.batches for stage in by_data if stage.batches is not None), default=None)
        seen = [member for name in layouts for member in (sharing(name) if name in groups else (name,))]
        moments |= adapter.second_moments(seen, first_batches(data, most), config.samples)
        moments |= {name: mean_moment([moments.get(member) for member in sharing(name)]) for name in groups}
    return {
        name: LocalTask(
            name=name,
            weight=weight,
            moment=_usable(moments.get(name)),
            topology=own.topology or Dense(),  # a budget chooses another one
            layout=layouts[name],
            base=own.base,
            seed=own.seed,
            steps=fit.steps or 0 if fit else 0,
            optimizer=own.optimizer,
            lr=fit.lr or own.lr if fit else own.lr,
            device=device,
            restarts=own.restarts if fit else 1,
            silent=config.mode == "adapter",
            start="closed-form" if closed else "random",
        )
        for name, weight, own in planned
    }


def _impossible(layer: Layer, config: Config) -> str:
    """Return why the requested topology cannot generate a layer's weights; for a budget, others are chosen."""
    own = config.options_of(layer)
    for shape in layer.weights.values() if not layer.group else ():
        if math.prod(shape) == 1:
            return "has a single entry"
        try:
            if config.chooses_formats:
                continue
            if own.topology is None:
                return "has no topology, unlike other layers"
            own.topology.segments(own.layout(shape))
        except (LayoutError, TopologyError) as error:
            return str(error)
    return ""


def _unfit(weights: Iterable[np.ndarray]) -> str:
    """Return why these weights cannot be generated."""
    for weight in weights:
        if not np.isfinite(weight).all():
            return "has entries that are NaN or infinite"
        if not weight.any():
            return "is zero"
    return ""


def _usable(moment: np.ndarray | None) -> np.ndarray | None:
    """Return the second moment, or ``None`` if all inputs are zero, which carries no information."""
    return moment if moment is not None and float(np.trace(moment)) > 0.0 else None
