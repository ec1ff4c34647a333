"""A Flax NNX model whose layers are replaced by generated ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as Generated
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from adtn import Generator
from adtn._files import sealed, write_bytes
from adtn.bench import median_seconds
from adtn.compression import Layer, Tuning
from adtn.errors import CompressError, DeviceError
from adtn.optim import fingerprint
from adtn.schedule import decide
from flax import nnx

from ..shared._batches import IGNORED, cycled
from ._distill import Seen, distill_layer, packed
from ._loss import check_range, classes_of, loss_of, outputs_of
from ._step import train
from .layers import ADTNLinear, GeneratedWeight
from .layers._adapted import Adapted, adapted_layers, add_adapter
from .layers._kernels import patches, weight_of
from .layers._like import layer_like
from .layers._places import modules_of, params_of, put_module, variables_of
from .layers._weight import Frozen

_CACHED_BYTES = 1 << 30  # of one layer's inputs and outputs
_LARGEST_MOMENT = 1 << 26


class NnxModel:
    """See :class:`adtn.compression.Model`. Losses are traced: they may do what :func:`jax.jit` allows."""

    def __init__(self, model: nnx.Module, device: str | None) -> None:
        self.model = model
        params = jax.tree.leaves(nnx.state(model, nnx.Param))
        if not params:
            raise CompressError("Got a model without parameters; there is nothing to compress.")
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in params):
            raise CompressError("Got a model of shapes without numbers (nnx.eval_shape); load its weights first.")
        here = sorted({f"jax:{d.platform}" for d in params[0].devices()})
        if device is not None and not any(device.startswith(name) for name in here):
            raise DeviceError(f"Got device={device!r} for a model on {', '.join(here)}; move it first.")
        self._dense: Any = None
        self._originals: dict[str, Any] = {}
        self._weights: dict[str, GeneratedWeight] = {}
        self._active: list[tuple[Adapted, tuple[str, ...], bool]] = []

    def layers(self) -> list[Layer]:
        """Modules with parameters of their own."""
        found: list[Layer] = []
        places: dict[int, list[str]] = {}
        owners: dict[int, list[str]] = {}
        modules = dict(modules_of(self.model))
        adapted = [m for m in modules.values() if isinstance(m, Adapted)]
        inside = {id(part) for m in adapted for name, part in modules_of(m) if name}
        normed = {
            id(part): type(m).__name__ for m in modules.values() if isinstance(m, nnx.WeightNorm | nnx.SpectralNorm)
            for name, part in modules_of(m) if name
        }  # fmt: skip
        for name, module in modules.items():
            places.setdefault(id(module), []).append(name)
            for variable in params_of(module):
                owners.setdefault(id(variable), []).append(name)
        for name, module in modules.items():
            dense = module.base_layer if isinstance(module, Adapted) else module
            own = params_of(dense)
            if not own or name != places[id(module)][0] or id(module) in inside:
                continue
            weight, reason = weight_of(dense)
            if id(module) in normed:
                reason = f"{normed[id(module)]} changes its weight in every call"
            same = tuple(places[id(module)][1:])
            others = {n for v in own for n in owners[id(v)]} - {name, *same, f"{name}.base_layer"}
            if others and not reason:
                reason = f"shares its weight with {', '.join(sorted(others))}"
            weights = {name: tuple(weight.shape)} if weight is not None and not reason else {}
            size = max(v[...].dtype.itemsize for v in own)
            found.append(Layer(name, type(dense).__name__, weights, same, reason, size))
        return found

    def weight(self, name: str) -> np.ndarray:
        """In the orientation of the generated layer."""
        weight, _ = weight_of(self._original(name))
        return np.asarray(weight, np.float64)

    def second_moments(self, names: Sequence[str], data: Iterable[Any]) -> dict[str, np.ndarray]:
        """Of linear layers and ungrouped convolutions over images; others are left out."""
        shapes = {name: shape for layer in self.layers() for name, shape in layer.weights.items()}
        sums: dict[str, Any] = {}
        counts: dict[str, int] = {}

        def look(name: str, inputs: tuple[Any, ...], options: Any, output: Any) -> None:
            rows = patches(self._original(name), inputs[0])
            if rows is not None:
                sums[name] = sums.get(name, 0.0) + np.asarray(rows.T @ rows, np.float64)
                counts[name] = counts.get(name, 0) + rows.shape[0]

        wanted = [name for name in names if math.prod(shapes[name][1:]) ** 2 <= _LARGEST_MOMENT]
        for _ in self._watched(wanted, data, look):
            pass
        return {name: total / counts[name] for name, total in sums.items()}

    def install(self, generators: Mapping[str, Generator]) -> None:
        """Everything is made first; then modules change places."""
        layers = {layer.name: layer for layer in self.layers()}
        adapted = dict(adapted_layers(self.model))
        for name, generator in generators.items():
            shape = layers[name].weights.get(name) if name in layers else None
            if shape != generator.shape:
                raise CompressError(
                    f"Got a generator of {generator.shape} for {name!r}, whose weight is {shape}; "
                    "pass the model that was compressed."
                )
            if name in adapted:
                raise CompressError(f"Layer {name!r} has adapters; merge and remove them first.")
        modules = dict(modules_of(self.model))
        dtypes = {name: params_of(modules[name])[0][...].dtype for name in generators}
        weights = {name: GeneratedWeight(generator).astype(dtypes[name]) for name, generator in generators.items()}
        made = {name: layer_like(modules[name], weight) for name, weight in weights.items()}
        dense = nnx.clone(self.model)
        self._dense, self._weights = dense, weights
        self._originals = {place: modules[place] for name in made for place in (name, *layers[name].tied)}
        for name, module in made.items():
            for place in (name, *layers[name].tied):
                put_module(self.model, place, module)

    def adapt(self, generators: Mapping[str, Generator], name: str) -> None:
        """See :class:`adtn_backends.jax.Adapted`."""
        before = [layer for _, layer in adapted_layers(self.model)]
        self._active = [(layer, layer.active, layer.merged) for layer in before]
        for layer in before:
            layer.unmerge()
        self._dense = nnx.clone(self.model)
        places = dict(modules_of(self.model))
        originals = {where: places[where] for where in generators}
        add_adapter(self.model, generators, name)
        self._originals = originals
        layers = dict(adapted_layers(self.model))
        self._weights = {where: layers[where].generated(name) for where in generators}

    def restore(self) -> None:
        """The very modules that were there, with the numbers they had: training may have changed others, too."""
        for name, module in self._originals.items():
            put_module(self.model, name, module)
        if self._dense is not None:
            nnx.update(self.model, nnx.state(self._dense))
        for layer, active, merged in self._active:
            layer.active = active
            if merged:
                layer.merge()
        self._active = []
        self._originals, self._weights, self._dense = {}, {}, None

    def check(self, tuning: Tuning) -> None:
        """Compiled anyway, and in the dtype that layers have."""
        if tuning.autocast:
            raise CompressError(
                f"Got autocast={tuning.autocast!r} for a model of Flax, whose layers say it themselves: make them with "
                f"dtype=jnp.{tuning.autocast}, which generated layers take over."
            )
        if tuning.capture:
            raise CompressError("Got capture=True for a model of JAX, which compiles its updates anyway. Leave it out.")

    def tune(
        self, data: Iterable[Any], loss: Callable[..., Any] | None, tuning: Tuning, report: Callable[[int, float], None]
    ) -> list[float]:
        """With a cosine, in training mode; batches are cycled through."""
        self.check(tuning)
        cores = {id(v) for weight in self._weights.values() for v in params_of(weight)}
        chosen = {
            path: v for path, v in variables_of(self.model).items()
            if isinstance(v, nnx.Param) and (tuning.train == "all" or id(v) in cores)
        }  # fmt: skip
        teacher: Any = None
        if tuning.distill and self._dense is not None:
            with _mode(self._dense, training=False):
                teacher = nnx.split(self._dense)

        def value(model: Any, batch: Any) -> Any:
            dense = None if teacher is None else nnx.merge(*teacher, copy=True)
            return loss_of(model, batch, loss, dense, tuning.distill)

        batches = self._batches(cycled(data, tuning.steps), within=loss is None)
        with _mode(self.model, training=True), _dropout(self.model, tuning.dropout):
            return train(self.model, chosen, value, batches, tuning, report)

    def distill(self, data: Iterable[Any], tuning: Tuning, executor: Any, say: Callable[[str], None]) -> None:
        """By the mean squared error of the outputs, in units of their spread."""
        modules = dict(modules_of(self.model))
        jobs: dict[str, Any] = {}
        for name in self._weights:
            task = (packed(modules[name]), self._seen(name, data), tuning)
            jobs[name] = distill_layer(*task) if executor is None else executor.submit(distill_layer, *task)
        for name, job in jobs.items():
            (_, state), first, last = job if executor is None else job.result()
            nnx.update(modules[name], jax.tree.map(jnp.asarray, state))
            say(f"{name}: outputs' error {first:.4f} -> {last:.4f}")

    def loss_on(self, data: Iterable[Any], loss: Callable[..., Any] | None) -> float:
        """In evaluation mode."""
        of_model = lambda model, batch: loss_of(model, batch, loss)  # noqa: E731
        found = [float(x) for x in self._each(data, of_model, within=loss is None)]
        if not found:
            raise CompressError("Got data without a batch; pass a list or a DataLoader.")
        return statistics.fmean(found)

    def accuracy(self, data: Iterable[Any]) -> float | None:
        """Of the largest output."""

        def count(model: Any, batch: Any) -> Any:
            outputs = outputs_of(model, batch)
            try:
                scores, labels = classes_of(outputs, batch)
            except CompressError:
                return None
            return (scores.argmax(-1) == labels).sum(), (labels != IGNORED).sum()

        found = list(self._each(data, count, within=True))
        if None in found:
            return None
        total = sum(int(n) for _, n in found)
        if not total:
            raise CompressError("Got test data without a batch; pass some, or leave test out.")
        return 100.0 * sum(int(right) for right, _ in found) / total

    def score(self, score: Callable[[Any], Any]) -> float:
        """In evaluation mode."""
        with _mode(self.model, training=False):
            return float(score(self.model))

    def generators(self) -> dict[str, Generator]:
        """Of all installed weights."""
        return {name: weight.generator() for name, weight in self._weights.items()}

    def state(self) -> dict[str, Any]:
        """Arrays by path; they cannot change."""
        return {path: v[...] for path, v in variables_of(self.model).items()}

    def digest(self) -> str:
        """Of the state, array by array; states of random numbers are left out."""
        return fingerprint({name: v[...] for name, v in _stored(self.model).items()})

    def set_state(self, state: dict[str, Any]) -> None:
        """Every array of it."""
        for path, v in variables_of(self.model).items():
            v[...] = state[path]

    def load(self, path: Path) -> None:
        """From safetensors."""
        from safetensors.numpy import load_file

        given, own = load_file(path), _stored(self.model)
        shapes = [{name: tuple(x.shape) for name, x in one.items()} for one in (given, own)]
        if shapes[0] != shapes[1]:
            odd = ", ".join(sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})[:5])
            raise CompressError(
                f"Got a file and a model with other numbers, such as {odd}; pass the model it was made of."
            )
        for name, v in own.items():
            v[...] = jnp.asarray(given[name], v[...].dtype)

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """To safetensors; what is shared is stored once, and states of random numbers are not."""
        from safetensors.numpy import save

        tensors = {name: np.asarray(v[...]) for name, v in _stored(self.model).items()}
        write_bytes(path, sealed(save(tensors, dict(metadata))))

    def numbers(self) -> tuple[int, int]:
        """Parameters, and their bytes."""
        own = [v[...] for v in variables_of(self.model).values() if isinstance(v, nnx.Param)]
        return sum(x.size for x in own), sum(x.nbytes for x in own)

    def forward_cost(self, data: Iterable[Any]) -> tuple[float, int | None]:
        """Of inference on the first batch, compiled."""
        batch = _arrays(next(cycled(data, 1)))
        with _mode(self.model, training=False):
            graph, state = nnx.split(self.model)
            made = jax.jit(lambda state, batch: outputs_of(nnx.merge(graph, state, copy=True), batch))
            forward = made.lower(state, batch).compile()

            def run() -> None:
                jax.block_until_ready(forward(state, batch))

            needs = forward.memory_analysis()
            peak = None if needs is None else needs.temp_size_in_bytes + needs.output_size_in_bytes
            return median_seconds(run, most=50), peak

    def predicted_seconds(self, data: Iterable[Any]) -> dict[str, float]:
        """By the plans for the rows of the first batch; convolutions and embeddings are priced by their weights."""
        rows: dict[str, int] = {}
        modules = dict(modules_of(self.model))

        def look(name: str, inputs: tuple[Any, ...], options: Any, output: Any) -> None:
            layer = modules[name]
            if isinstance(layer, ADTNLinear):
                rows[name] = inputs[0].size // layer.in_features

        for _ in self._watched(list(self._weights), [next(cycled(data, 1))], look):
            pass
        where = "jax:cpu" if jax.default_backend() == "cpu" else f"jax:{jax.default_backend()}:0"
        found: dict[str, float] = {}
        for name, weight in self._weights.items():
            task = ("apply", rows[name]) if rows.get(name) else ("generate", None)
            found[name] = decide(weight.generator(), task[0], device=where, batch=task[1]).predicted_seconds
        return found

    def _batches(self, data: Iterable[Any], *, within: bool) -> Iterator[Any]:
        """As arrays; ``within`` refuses labels of classes that the model does not score, which a trace cannot see."""
        known: dict[Any, Any] = {}
        for batch in data:
            batch = _arrays(batch)
            if within:
                shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(batch))
                if shapes not in known:
                    known[shapes] = self._outputs(batch)
                check_range(known[shapes], batch)
            yield batch

    def _outputs(self, batch: Any) -> Any:
        """Shapes of what the model puts out."""
        with _mode(self.model, training=False):
            graph, state = nnx.split(self.model)
        return jax.eval_shape(lambda s, b: outputs_of(nnx.merge(graph, s, copy=True), b), state, batch)

    def _each(self, data: Iterable[Any], what: Callable[[Any, Any], Any], *, within: bool = False) -> Iterator[Any]:
        """``what(model, batch)`` of every batch, compiled, in evaluation mode."""
        with _mode(self.model, training=False):
            graph, state = nnx.split(self.model)
        run = jax.jit(lambda state, batch: what(nnx.merge(graph, state, copy=True), batch))
        for batch in self._batches(data, within=within):
            yield run(state, batch)

    def _seen(self, name: str, data: Iterable[Any]) -> list[Seen]:
        """Inputs and outputs of a dense layer, as many batches as memory is given for."""
        kept: list[Seen] = []
        dense, model = self._dense, self.model
        self.model = dense
        try:
            for _ in self._watched([name], data, lambda _, *one: kept.append(jax.tree.map(np.asarray, one))):
                if sum(x.nbytes for xs, _, y in kept for x in (*xs, y)) > _CACHED_BYTES:
                    break
        finally:
            self.model = model
        if not kept:
            raise CompressError(f"No batch reached layer {name!r}; pass data that use it.")
        return kept

    def _watched(self, names: Sequence[str], data: Iterable[Any], look: Callable[..., None]) -> Iterator[None]:
        """Run the model on every batch, in evaluation mode, and look at what those layers get and give."""
        modules = dict(modules_of(self.model))
        spots = {place: name for name in names for place, module in modules.items() if module is modules[name]}
        try:
            for place, name in spots.items():
                put_module(self.model, place, _Watched(modules[place], name, look))
            with _mode(self.model, training=False):
                for batch in data:
                    outputs_of(self.model, _arrays(batch))
                    yield
        finally:
            for place in spots:
                put_module(self.model, place, modules[place])

    def _original(self, name: str) -> Any:
        found = self._originals[name] if name in self._originals else dict(modules_of(self.model))[name]
        return found.base_layer if isinstance(found, Adapted) else found


class _Watched(nnx.Module):
    """A layer that shows what it gets and gives."""

    def __init__(self, layer: Any, name: str, look: Callable[..., None]) -> None:
        self.layer, self.name, self.look = layer, name, look

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        output = self.layer(*inputs, **options)
        self.look(self.name, inputs, options, output)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "layer"), name)


def _stored(model: nnx.Module) -> dict[str, Any]:
    """What a file holds: frozen numbers come with their generators, or from a rule."""
    return {name: v for name, v in variables_of(model).items() if not isinstance(v, nnx.RngState | Frozen)}


@contextmanager
def _mode(model: nnx.Module, *, training: bool) -> Generated[None, None, None]:
    """As ``model.train()`` or ``model.eval()``, and back."""
    flags = ("deterministic", "use_running_average")
    was = [(m, flag, vars(m)[flag]) for _, m in modules_of(model) for flag in flags if flag in vars(m)]
    (model.train if training else model.eval)()
    try:
        yield
    finally:
        for module, flag, value in was:
            setattr(module, flag, value)


@contextmanager
def _dropout(model: nnx.Module, rate: float | None) -> Generated[None, None, None]:
    """All dropouts at one rate, and back."""
    found: list[Any] = [m for _, m in modules_of(model) if isinstance(m, nnx.Dropout)] if rate is not None else []
    was = [(m, m.rate) for m in found]
    for module in found:
        module.rate = rate
    try:
        yield
    finally:
        for module, own in was:
            module.rate = own


def _arrays(batch: Any) -> Any:
    return jax.tree.map(jnp.asarray, tuple(batch) if isinstance(batch, list) else batch)
