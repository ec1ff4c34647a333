"""A Flax NNX model whose layers are replaced by generated ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as Generated
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from adtn._files import sealed, write_bytes
from adtn.bench import seconds_in_turns
from adtn.compression import ForwardCost, Layer, Tuning
from adtn.errors import CompressError, DeviceError
from adtn.optim import fingerprint
from adtn.precision import Codes, Precision
from flax import nnx
from jax.core import Tracer

from ..shared._batches import IGNORED, cycled
from ..shared._model import NO_PARAMETERS, ReplacedModel, seen_by, with_inputs
from ..shared._relative import relative_rates
from ..shared._rest import CodedArrays, coded, decoded_arrays, half_of, is_coded
from ._distill import Seen, distill_layer, packed
from ._loss import check_range, classes_of, loss_of, outputs_of
from ._normalise import statistics_of
from ._step import root_mean_square, train
from .layers import GeneratedWeight
from .layers._adapted import MODULES
from .layers._kinds import kind_of, kind_of_generated, layer_like, weight_of
from .layers._places import mode_of, modules_of, params_of, put_module, variables_of
from .layers._shards import replicated
from .layers._slice import Weight, shared_once
from .layers._weight import Frozen


class NnxModel(ReplacedModel):
    """A :class:`adtn.compression.Model` for Flax; losses are traced and may do whatever :func:`jax.jit` allows."""

    modules = MODULES
    _weights: dict[str, GeneratedWeight]

    def __init__(self, model: nnx.Module, device: str | None) -> None:
        super().__init__(model)
        params = jax.tree.leaves(nnx.state(model, nnx.Param))
        if not params:
            raise CompressError(NO_PARAMETERS)
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in params):
            raise CompressError("Got a model of shapes without values (nnx.eval_shape); load its weights first.")
        here = sorted({f"jax:{d.platform}" for d in params[0].devices()})
        if device is not None and not any(device.startswith(name) for name in here):
            raise DeviceError(f"Got device={device!r} for a model on {', '.join(here)}; move it first.")

    def layers(self) -> list[Layer]:
        """List the modules that have parameters of their own."""
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
            params = params_of(dense)
            first, *others = places[id(module)]
            if not params or name != first or id(module) in inside:
                continue
            weight, reason = weight_of(dense)
            if id(module) in normed:
                reason = f"{normed[id(module)]} changes its weight in every call"
            sharing = {n for v in params for n in owners[id(v)]} - {name, *others, f"{name}.base_layer"}
            if sharing and not reason:
                reason = f"shares its weight with {', '.join(sorted(sharing))}"
            layers.append(
                Layer(
                    name=name,
                    kind=type(dense).__name__,
                    weights={name: tuple(weight.shape)} if weight is not None and not reason else {},
                    tied=tuple(others),
                    reason=reason,
                    itemsize=max(v[...].dtype.itemsize for v in params),
                    place=params[0][...].dtype.name,
                )
            )
        return layers

    def weight(self, name: str) -> np.ndarray:
        """Read a weight in the orientation of the generated layer."""
        weight, _ = weight_of(self._original(name))
        return np.asarray(weight, np.float64)

    def _copied(self) -> nnx.Module:
        return nnx.clone(self.model)

    def _take_values(self, dense: nnx.Module) -> None:
        nnx.update(self.model, nnx.state(dense))

    def _replacements(
        self, layer: Layer, weights: Mapping[str, Weight], places: Mapping[str, nnx.Module]
    ) -> dict[str, nnx.Module]:
        return dict.fromkeys((layer.name, *layer.tied), layer_like(places[layer.name], weights[layer.name]))

    def check(self, tuning: Tuning) -> None:
        """Refuse Adam in float16, and options that do not apply to Flax: autocast and capture."""
        halves = any(x.dtype == jnp.float16 for x in jax.tree.leaves(nnx.state(self.model, nnx.Param)))
        if halves and tuning.optimizer == "adam":
            raise CompressError(
                "Got float16 parameters to train with Adam, where squares of small gradients underflow; train in "
                "float32 or bfloat16 and convert the parameters afterwards, or pass tune_optimizer='sgd'."
            )
        if tuning.autocast:
            raise CompressError(
                f"Got autocast={tuning.autocast!r} for a model of Flax, where each layer has its own dtype; make the "
                f"layers with dtype=jnp.{tuning.autocast}, which generated layers inherit."
            )
        if tuning.capture:
            raise CompressError("Got capture=True for a model of Flax, whose steps are compiled anyway; leave it out.")

    def _tune(
        self,
        data: Iterable[Any],
        loss: Callable[..., Any] | None,
        tuning: Tuning,
        report: Callable[[int, float], bool | None],
    ) -> list[float]:
        cores = {id(v) for weight in self._weights.values() for v in variables_of(weight).values()}
        chosen = {
            path: v
            for path, v in variables_of(self.model).items()
            if isinstance(v, nnx.Param) and (tuning.train == "all" or id(v) in cores)
        }
        sizes = {path: root_mean_square(v[...]) for path, v in chosen.items() if tuning.relative and id(v) in cores}
        factors = relative_rates(sizes)
        teacher: Any = None
        if tuning.distill and self._dense is not None:
            with mode_of(self._dense, training=False):
                teacher = nnx.split(self._dense)

        def value(model: Any, batch: Any) -> Any:
            dense = None if teacher is None else nnx.merge(*teacher, copy=True)
            with shared_once(model):
                return loss_of(model, batch, loss, dense, tuning.distill)

        batches = self._batches(cycled(data, tuning.steps), check=loss is None)
        with mode_of(self.model, training=True), _dropout(self.model, tuning.dropout):
            return train(self.model, chosen, value, batches, tuning, report, factors)

    def _distilled(self) -> list[str]:
        return list(self._weights)  # a module at several places is distilled once

    def _job(self, name: str, data: Iterable[Any], tuning: Tuning, *, chained: bool) -> tuple[Any, ...]:
        return distill_layer, packed(self.modules.at(self.model, name)), self._seen(name, data, chained), tuning

    def _take_generator(self, weight: GeneratedWeight, other: GeneratedWeight) -> None:
        nnx.update(weight, nnx.state(other))
        weight.decode_held()

    def _take_layer(self, name: str, values: Any) -> None:
        nnx.update(self.modules.at(self.model, name), jax.tree.map(jnp.asarray, values[1]))

    def _losses(self, data: Iterable[Any], loss: Callable[..., Any] | None) -> list[float]:
        def of_model(model: Any, batch: Any) -> Any:
            return loss_of(model, batch, loss)

        return [float(x) for x in self._each(data, of_model, check=loss is None)]

    def _gradients(
        self, names: Sequence[str], data: Iterable[Any], loss: Callable[..., Any] | None
    ) -> dict[str, np.ndarray]:
        cores = {id(v): name for name in names for v in variables_of(self._weights[name]).values()}
        places = {path: cores[id(v)] for path, v in nnx.iter_graph(self.model) if id(v) in cores}

        def of_model(model: Any, batch: Any) -> Any:
            wanted = nnx.DiffState(0, lambda path, _: path in places)
            return nnx.grad(lambda own: loss_of(own, batch, loss), argnums=wanted)(model)

        sums: dict[str, np.ndarray] = {}
        count = 0
        for state in self._each(data, of_model, check=loss is None):
            count += 1
            for path, v in nnx.to_flat_state(state):
                sums[places[path]] = sums.get(places[path], 0.0) + np.asarray(v[...], np.float64)
        return {name: total.reshape(self._weights[name].shape) / count for name, total in sums.items()}

    def _outputs_on(self, data: Iterable[Any]) -> Iterator[Any]:
        yield from self._each(data, outputs_of, check=False)

    def normalise(self, data: Iterable[Any]) -> bool:
        """Correct the running statistics of batch normalisation by how the statistics of the batches changed."""
        batches = [_arrays(batch) for batch in data]
        now = statistics_of(self.model, batches)
        if not now or self._dense is None:
            return False
        dense = statistics_of(self._dense, batches)
        norms, before = (dict(modules_of(model)) for model in (self.model, self._dense))
        for name, (mean, variance) in now.items():
            change = variance / jnp.maximum(dense[name][1], jnp.finfo(variance.dtype).tiny)
            norms[name].mean[...] = before[name].mean[...] + mean - dense[name][0]
            norms[name].var[...] = before[name].var[...] * change
        return True

    def _counted(self, data: Iterable[Any]) -> Iterator[tuple[int, int] | None]:
        def count(model: Any, batch: Any) -> Any:
            outputs = outputs_of(model, batch)
            try:
                scores, labels = classes_of(outputs, batch)
            except CompressError:
                return None
            return (scores.argmax(-1) == labels).sum(), (labels != IGNORED).sum()

        for counts in self._each(data, count, check=True):
            yield None if counts is None else (int(counts[0]), int(counts[1]))

    def _evaluating(self) -> AbstractContextManager[None]:
        return mode_of(self.model, training=False)

    def state(self) -> dict[str, Any]:
        """Return all arrays by path; as JAX's arrays are immutable, they are not copied."""
        return {path: v[...] for path, v in variables_of(self.model).items()}

    def digest(self) -> str:
        """Return a digest of the state without the states of random numbers."""
        return fingerprint({name: v[...] for name, v in _stored(self.model).items()})

    def set_state(self, state: dict[str, Any]) -> None:
        """Set every array."""
        for path, v in variables_of(self.model).items():
            v[...] = state[path]

    def load(self, path: Path) -> None:
        """Load the state from a safetensors file."""
        from safetensors import safe_open
        from safetensors.numpy import load_file

        with safe_open(path, "np") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
        loaded, variables = load_file(path), _stored(self.model)
        loaded |= {name: x for name, (x, _) in decoded_arrays(metadata, loaded, np.asarray).items()}
        shapes = [{name: tuple(x.shape) for name, x in tensors.items()} for tensors in (loaded, variables)]
        if shapes[0] != shapes[1]:
            different = ", ".join(sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})[:5])
            raise CompressError(
                f"Got a file whose tensors differ from those of the model, such as {different}; pass the model from "
                "which it was saved."
            )
        for name, v in variables.items():
            v[...] = jnp.asarray(loaded[name], v[...].dtype)
        for weight in (m for _, m in modules_of(self.model) if isinstance(m, GeneratedWeight)):
            weight.decode_held()

    def content(self, metadata: Mapping[str, str], rest: Precision | None = None) -> bytes:
        """Return the state as a safetensors file, shared variables once, and without the states of random numbers."""
        from safetensors.numpy import save

        codes, generated, tensors = CodedArrays(), self._generated_ids(), dict[str, np.ndarray]()
        for name, v in _stored(self.model).items():
            if id(v) in generated or rest is None:
                tensors[name] = np.asarray(v[...])
            elif (own := _coded(v[...], rest)) is not None:
                tensors[name] = codes.add(name, own, v[...].dtype.name)
            else:
                tensors[name] = np.asarray(_narrowed(v[...], half_of(rest)))
        return save(tensors, {**codes.metadata(), **metadata})

    def save(self, path: Path, metadata: Mapping[str, str], rest: Precision | None = None) -> None:
        """Save the state to a safetensors file; see :meth:`content`."""
        write_bytes(path, sealed(self.content(metadata, rest)))

    def narrow(self, rest: Precision) -> None:
        """Round what is not generated to the values that are stored."""
        generated = self._generated_ids()
        for v in _stored(self.model).values():
            if id(v) not in generated:
                x, own = v[...], _coded(v[...], rest)
                v[...] = (_narrowed(x, half_of(rest)) if own is None else jnp.asarray(own.decode())).astype(x.dtype)

    def _generated_ids(self) -> set[int]:
        weights = [m for _, m in modules_of(self.model) if isinstance(m, GeneratedWeight)]
        return {id(v) for weight in weights for v in vars(weight).values()}

    def sizes(self) -> tuple[int, int]:
        """Count the parameters and their bytes; cores that are stored as codes count as well."""
        params = [v[...] for v in variables_of(self.model).values() if isinstance(v, nnx.Param)]
        weights = {id(m): m for _, m in modules_of(self.model) if isinstance(m, GeneratedWeight)}
        coded = [weight.coded for weight in weights.values()]
        return (
            sum(x.size for x in params) + sum(entries for entries, _ in coded),
            sum(x.nbytes for x in params) + sum(nbytes for _, nbytes in coded),
        )

    def resident_bytes(self) -> int:
        """Count the bytes of all variables except random numbers."""
        arrays = {id(v): v[...] for v in variables_of(self.model).values() if not isinstance(v, nnx.RngState)}
        return sum(x.nbytes for x in arrays.values())

    def forward_costs(self, data: Iterable[Any]) -> tuple[ForwardCost, ForwardCost]:
        """Measure compiled inference on the first batch."""
        batch = _arrays(next(cycled(data, 1)))
        runs: dict[str, Callable[[], Any]] = {}
        peaks: dict[str, int | None] = {}
        for name, model in (("dense", self._dense), ("now", self.model)):
            with mode_of(model, training=False):
                graph, state = nnx.split(model)
                jitted = jax.jit(lambda s, b, graph=graph: outputs_of(nnx.merge(graph, s, copy=True), b))
                forward = jitted.lower(state, batch).compile()
            runs[name] = lambda forward=forward, state=state: jax.block_until_ready(forward(state, batch))
            needs = forward.memory_analysis()
            peaks[name] = None if needs is None else needs.temp_size_in_bytes + needs.output_size_in_bytes
        times = seconds_in_turns(runs, most=50)
        dense, now = (ForwardCost(seconds=times[name], peak_bytes=peaks[name]) for name in runs)
        return dense, now

    def _rows(self, data: Iterable[Any]) -> dict[str, int]:
        rows: dict[str, int] = {}
        modules = self.modules.places(self.model)

        def look(name: str, inputs: tuple[Any, ...], options: Any, output: Any) -> None:
            kind = kind_of_generated(modules[name])
            if kind is not None:
                rows[name] = kind.batch(modules[name], inputs[0])

        for _ in self._watched(self._alone, [next(cycled(data, 1))], look):
            pass
        return rows

    def _planned_on(self, weight: GeneratedWeight) -> tuple[str, str | None]:
        platform = jax.default_backend()
        return "jax:cpu" if platform == "cpu" else f"jax:{platform}:0", None

    def _batches(self, data: Iterable[Any], *, check: bool) -> Iterator[Any]:
        """Yield batches of arrays; ``check`` refuses labels that are out of range, which traced code cannot do."""
        outputs: dict[Any, Any] = {}
        for batch in data:
            batch = _arrays(batch)
            if check:
                shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(batch))
                if shapes not in outputs:
                    outputs[shapes] = self._outputs(batch)
                check_range(outputs[shapes], batch)
            yield batch

    def _outputs(self, batch: Any) -> Any:
        """Return the shapes of the model's outputs."""
        with mode_of(self.model, training=False):
            graph, state = nnx.split(self.model)
        return jax.eval_shape(lambda s, b: outputs_of(nnx.merge(graph, s, copy=True), b), state, batch)

    def _each(self, data: Iterable[Any], function: Callable[[Any, Any], Any], *, check: bool) -> Iterator[Any]:
        """Yield ``function(model, batch)`` for every batch, compiled, in evaluation mode."""
        with mode_of(self.model, training=False):
            graph, state = nnx.split(self.model)
        run = jax.jit(lambda state, batch: function(nnx.merge(graph, state, copy=True), batch))
        for batch in self._batches(data, check=check):
            yield run(state, batch)

    def _look_at_inputs(
        self, model: nnx.Module, names: Sequence[str], batch: Any, look: Callable[[str, Any, Any | None], None]
    ) -> None:
        # before they are watched, as wrappers take their places then
        dense_layers = {name: self._original(name) for name in names}

        def look_at(name: str, inputs: tuple[Any, ...], options: Any, output: Any) -> None:
            kind = kind_of(dense_layers[name])
            rows = kind.rows(dense_layers[name], inputs[0]) if kind is not None and inputs else None
            if isinstance(rows, Tracer):  # inside a transformation such as a scan, inputs have no values here
                rows = None
            if rows is not None:  # a sum over rows on several devices would have no device of its own
                rows = jnp.asarray(replicated(rows), jnp.promote_types(rows.dtype, jnp.float32))
            look(name, inputs[0] if inputs else None, rows)

        for _ in self._watched(names, [batch], look_at, model):
            pass

    def called(self, names: Sequence[str], data: Iterable[Any]) -> list[str]:
        called: dict[str, None] = {}

        def look(name: str, *_: Any) -> None:
            called[name] = None

        for _ in self._watched(names, [next(cycled(data, 1))], look):
            pass
        return list(called)

    def _seen(self, name: str, data: Iterable[Any], chained: bool) -> list[Seen]:
        """Return the inputs and outputs of a layer for as many batches as fit the memory for them."""
        seen: list[Seen] = []

        def run_batch(batch: Any) -> int:
            calls = self._calls(self._dense, name, batch)
            seen.extend(with_inputs(calls, self._calls(self.model, name, batch)) if chained else calls)
            return sum(x.nbytes for x in jax.tree.leaves(seen))

        seen_by(name, map(run_batch, data))
        return seen

    def _calls(self, model: nnx.Module, name: str, batch: Any) -> list[Seen]:
        """Return the inputs and outputs of all calls of a layer for one batch."""
        calls: list[Seen] = []

        def look(_: str, *inputs_and_output: Any) -> None:
            calls.append(jax.tree.map(np.asarray, inputs_and_output))

        for _ in self._watched([name], [batch], look, model):
            pass
        return calls

    def _watched(
        self, names: Sequence[str], data: Iterable[Any], look: Callable[..., None], model: Any = None
    ) -> Iterator[None]:
        """Run a model on every batch in evaluation mode, and call ``look`` with inputs and outputs of the layers."""
        model = self.model if model is None else model
        modules = self.modules.places(model)
        spots = {place: name for name in names for place, module in modules.items() if module is modules[name]}
        try:
            for place, name in spots.items():
                put_module(model, place, _Watched(modules[place], name, look))
            with mode_of(model, training=False):
                for batch in data:
                    outputs_of(model, _arrays(batch))
                    yield
        finally:
            for place in spots:
                put_module(model, place, modules[place])


def _inside_of(modules: Mapping[str, Any], kinds: Any) -> dict[int, str]:
    """Map the ids of modules that are inside a module of such a class to the name of that class."""
    outer = [module for module in modules.values() if isinstance(module, kinds)]
    return {id(part): type(module).__name__ for module in outer for name, part in modules_of(module) if name}


class _Watched(nnx.Module):
    """A wrapper around a layer that passes its inputs and outputs to a function."""

    def __init__(self, layer: Any, name: str, look: Callable[..., None]) -> None:
        self.layer, self.name, self.look = layer, name, look

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        output = self.layer(*inputs, **options)
        self.look(self.name, inputs, options, output)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "layer"), name)


def _coded(x: jax.Array, rest: Precision) -> Codes | None:
    """Return the codes of an array that is stored as such."""
    if not jnp.issubdtype(x.dtype, jnp.floating) or not is_coded(x.shape, rest):
        return None
    return coded(np.asarray(x, np.float32))


def _narrowed(x: jax.Array, rest: str) -> jax.Array:
    """Convert real numbers to a narrower dtype, unless one would become infinite."""
    narrow = x.astype(rest) if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 2 else x
    return x if bool((jnp.isinf(narrow) & jnp.isfinite(x)).any()) else narrow


def _stored(model: nnx.Module) -> dict[str, Any]:
    """Return the variables to be stored; frozen values are stored with their generators, or follow from a rule."""
    return {name: v for name, v in variables_of(model).items() if not isinstance(v, nnx.RngState | Frozen)}


@contextmanager
def _dropout(model: nnx.Module, rate: float | None) -> Generated[None, None, None]:
    """Set all dropouts to one rate inside this block."""
    dropouts: list[Any] = [m for _, m in modules_of(model) if isinstance(m, nnx.Dropout)] if rate is not None else []
    before = [(m, m.rate) for m in dropouts]
    for module in dropouts:
        module.rate = rate
    try:
        yield
    finally:
        for module, original in before:
            module.rate = original


def _arrays(batch: Any) -> Any:
    return jax.tree.map(jnp.asarray, tuple(batch) if isinstance(batch, list) else batch)
