"""A Flax NNX model whose layers are replaced by generated ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as Generated
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from adtn._files import sealed, write_bytes
from adtn.bench import median_seconds
from adtn.compression import Layer, Tuning
from adtn.errors import CompressError, DeviceError
from adtn.optim import fingerprint
from flax import nnx

from ..shared._batches import IGNORED, cycled
from ..shared._model import LARGEST_MOMENT, NO_PARAMETERS, Moments, ReplacedModel, seen_by
from ._distill import Seen, distill_layer, packed
from ._loss import check_range, classes_of, loss_of, outputs_of
from ._step import train
from .layers import GeneratedWeight
from .layers._adapted import MODULES
from .layers._kinds import kind_of, kind_of_generated, layer_like, weight_of
from .layers._places import modules_of, params_of, put_module, variables_of
from .layers._shards import replicated
from .layers._weight import Frozen


class NnxModel(ReplacedModel):
    """A :class:`adtn.compression.Model` of Flax. Losses are traced: they may do what :func:`jax.jit` allows."""

    modules = MODULES
    _weights: dict[str, GeneratedWeight]

    def __init__(self, model: nnx.Module, device: str | None) -> None:
        super().__init__(model)
        params = jax.tree.leaves(nnx.state(model, nnx.Param))
        if not params:
            raise CompressError(NO_PARAMETERS)
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in params):
            raise CompressError("Got a model of shapes without numbers (nnx.eval_shape); load its weights first.")
        here = sorted({f"jax:{d.platform}" for d in params[0].devices()})
        if device is not None and not any(device.startswith(name) for name in here):
            raise DeviceError(f"Got device={device!r} for a model on {', '.join(here)}; move it first.")

    def layers(self) -> list[Layer]:
        """List modules with parameters of their own."""
        layers: list[Layer] = []
        modules = self.modules.places(self.model)
        inside = _inside_of(modules, self.modules.adapted)
        normed = _inside_of(modules, nnx.WeightNorm | nnx.SpectralNorm)
        places: dict[int, list[str]] = {}
        owners: dict[int, list[str]] = {}
        for name, module in modules.items():
            places.setdefault(id(module), []).append(name)
            for variable in params_of(module):
                owners.setdefault(id(variable), []).append(name)
        for name, module in modules.items():
            dense = self.modules.dense(module)
            own = params_of(dense)
            first, *others = places[id(module)]
            if not own or name != first or id(module) in inside:
                continue
            weight, reason = weight_of(dense)
            if id(module) in normed:
                reason = f"{normed[id(module)]} changes its weight in every call"
            sharing = {n for v in own for n in owners[id(v)]} - {name, *others, f"{name}.base_layer"}
            if sharing and not reason:
                reason = f"shares its weight with {', '.join(sorted(sharing))}"
            layers.append(
                Layer(
                    name=name,
                    kind=type(dense).__name__,
                    weights={name: tuple(weight.shape)} if weight is not None and not reason else {},
                    tied=tuple(others),
                    reason=reason,
                    itemsize=max(v[...].dtype.itemsize for v in own),
                )
            )
        return layers

    def weight(self, name: str) -> np.ndarray:
        """Read a weight in the orientation of the generated layer."""
        weight, _ = weight_of(self._original(name))
        return np.asarray(weight, np.float64)

    def second_moments(self, names: Sequence[str], data: Iterable[Any]) -> dict[str, np.ndarray]:
        """Compute second moments of the inputs of linear layers and ungrouped convolutions over images."""
        shapes = {name: shape for layer in self.layers() for name, shape in layer.weights.items()}
        # before they are watched, when others are in their places
        dense_layers = {name: self._original(name) for name in names}
        moments = Moments()

        def look(name: str, inputs: tuple[Any, ...], options: Any, output: Any) -> None:
            dense = dense_layers[name]
            kind = kind_of(dense)
            rows = None if kind is None else kind.rows(dense, inputs[0])
            if rows is not None:
                rows = replicated(rows)  # a sum over rows that lie on several devices has no place of its own
                moments.add(name, np.asarray(rows.T @ rows, np.float64), rows.shape[0])

        for _ in self._watched([n for n in names if math.prod(shapes[n][1:]) ** 2 <= LARGEST_MOMENT], data, look):
            pass
        return moments.means()

    def _copied(self) -> nnx.Module:
        return nnx.clone(self.model)

    def _take_values(self, dense: nnx.Module) -> None:
        nnx.update(self.model, nnx.state(dense))

    def _replacements(
        self, layer: Layer, weights: Mapping[str, GeneratedWeight], places: Mapping[str, nnx.Module]
    ) -> dict[str, nnx.Module]:
        return dict.fromkeys((layer.name, *layer.tied), layer_like(places[layer.name], weights[layer.name]))

    def check(self, tuning: Tuning) -> None:
        """Refuse what layers of Flax decide, and what is compiled anyway."""
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
        """Train with a cosine, in training mode; batches are cycled through."""
        self.check(tuning)
        cores = {id(v) for weight in self._weights.values() for v in params_of(weight)}
        chosen = {
            path: v
            for path, v in variables_of(self.model).items()
            if isinstance(v, nnx.Param) and (tuning.train == "all" or id(v) in cores)
        }
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

    def _distilled(self) -> list[str]:
        return list(self._weights)  # a module that is at several places is one

    def _job(self, name: str, data: Iterable[Any], tuning: Tuning) -> tuple[Any, ...]:
        return distill_layer, packed(self.modules.at(self.model, name)), self._seen(name, data), tuning

    def _take_layer(self, name: str, made: Any) -> None:
        nnx.update(self.modules.at(self.model, name), jax.tree.map(jnp.asarray, made[1]))

    def _losses(self, data: Iterable[Any], loss: Callable[..., Any] | None) -> list[float]:
        def of_model(model: Any, batch: Any) -> Any:
            return loss_of(model, batch, loss)

        return [float(x) for x in self._each(data, of_model, within=loss is None)]

    def _counted(self, data: Iterable[Any]) -> Iterator[tuple[int, int] | None]:
        def count(model: Any, batch: Any) -> Any:
            outputs = outputs_of(model, batch)
            try:
                scores, labels = classes_of(outputs, batch)
            except CompressError:
                return None
            return (scores.argmax(-1) == labels).sum(), (labels != IGNORED).sum()

        for counts in self._each(data, count, within=True):
            yield None if counts is None else (int(counts[0]), int(counts[1]))

    def _evaluating(self) -> AbstractContextManager[None]:
        return _mode(self.model, training=False)

    def state(self) -> dict[str, Any]:
        """Return arrays by path; they cannot change."""
        return {path: v[...] for path, v in variables_of(self.model).items()}

    def digest(self) -> str:
        """Return the digest of the state, array by array; states of random numbers are left out."""
        return fingerprint({name: v[...] for name, v in _stored(self.model).items()})

    def set_state(self, state: dict[str, Any]) -> None:
        """Set every array."""
        for path, v in variables_of(self.model).items():
            v[...] = state[path]

    def load(self, path: Path) -> None:
        """Load the state from safetensors."""
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
        """Save the state to safetensors; what is shared is stored once, and states of random numbers are not."""
        from safetensors.numpy import save

        tensors = {name: np.asarray(v[...]) for name, v in _stored(self.model).items()}
        write_bytes(path, sealed(save(tensors, dict(metadata))))

    def numbers(self) -> tuple[int, int]:
        """Count parameters, and their bytes."""
        own = [v[...] for v in variables_of(self.model).values() if isinstance(v, nnx.Param)]
        return sum(x.size for x in own), sum(x.nbytes for x in own)

    def forward_cost(self, data: Iterable[Any]) -> tuple[float, int | None]:
        """Return seconds and bytes of inference on the first batch, compiled."""
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

    def _rows(self, data: Iterable[Any]) -> dict[str, int]:
        rows: dict[str, int] = {}
        modules = self.modules.places(self.model)

        def look(name: str, inputs: tuple[Any, ...], options: Any, output: Any) -> None:
            kind = kind_of_generated(modules[name])
            if kind is not None:
                rows[name] = kind.batch(modules[name], inputs[0])

        for _ in self._watched(list(self._weights), [next(cycled(data, 1))], look):
            pass
        return rows

    def _planned_on(self, weight: GeneratedWeight) -> tuple[str, str | None]:
        platform = jax.default_backend()
        return "jax:cpu" if platform == "cpu" else f"jax:{platform}:0", None

    def _batches(self, data: Iterable[Any], *, within: bool) -> Iterator[Any]:
        """Batches of arrays; ``within`` refuses labels of classes without a score, which a trace cannot see."""
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
        """Return shapes of the model's outputs."""
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
        """Return inputs and outputs of a dense layer, as many batches as memory is given for."""
        seen: list[Seen] = []

        def look(_: str, *one: Any) -> None:
            seen.append(jax.tree.map(np.asarray, one))

        watched = self._watched([name], data, look, self._dense)
        seen_by(name, (sum(x.nbytes for xs, _, y in seen for x in (*xs, y)) for _ in watched))
        return seen

    def _watched(
        self, names: Sequence[str], data: Iterable[Any], look: Callable[..., None], model: Any = None
    ) -> Iterator[None]:
        """Run a model on every batch, in evaluation mode, and look at what those layers get and give."""
        model = self.model if model is None else model
        modules = self.modules.places(model)
        spots = {place: name for name in names for place, module in modules.items() if module is modules[name]}
        try:
            for place, name in spots.items():
                put_module(model, place, _Watched(modules[place], name, look))
            with _mode(model, training=False):
                for batch in data:
                    outputs_of(model, _arrays(batch))
                    yield
        finally:
            for place in spots:
                put_module(model, place, modules[place])


def _inside_of(modules: Mapping[str, Any], kinds: Any) -> dict[int, str]:
    """Return names of the classes of modules that have others inside, by the ids of those."""
    outer = [module for module in modules.values() if isinstance(module, kinds)]
    return {id(part): type(module).__name__ for module in outer for name, part in modules_of(module) if name}


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
    """Variables that a file holds: frozen values come with their generators, or from a rule."""
    return {name: v for name, v in variables_of(model).items() if not isinstance(v, nnx.RngState | Frozen)}


@contextmanager
def _mode(model: nnx.Module, *, training: bool) -> Generated[None, None, None]:
    """Set a model as ``model.train()`` or ``model.eval()`` does, inside of this block."""
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
    """Give all dropouts one rate, inside of this block."""
    dropouts: list[Any] = [m for _, m in modules_of(model) if isinstance(m, nnx.Dropout)] if rate is not None else []
    was = [(m, m.rate) for m in dropouts]
    for module in dropouts:
        module.rate = rate
    try:
        yield
    finally:
        for module, own in was:
            module.rate = own


def _arrays(batch: Any) -> Any:
    return jax.tree.map(jnp.asarray, tuple(batch) if isinstance(batch, list) else batch)
