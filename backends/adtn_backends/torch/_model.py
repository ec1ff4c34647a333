"""A PyTorch model whose layers are replaced by generated ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as Generated
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn import Generator
from adtn._files import sealed, write_bytes
from adtn.bench import seconds_in_turns
from adtn.compression import ForwardCost, Layer, Tuning
from adtn.errors import CompressError, DeviceError
from adtn.optim import fingerprint
from adtn.precision import Precision
from torch import nn

from ..shared._batches import IGNORED, cycled
from ..shared._model import (
    NO_PARAMETERS,
    refuse_nothing,
    seen_by,
    with_inputs,
)
from ..shared._rest import KEY, CodedArrays, decoded_arrays, half_of
from ..shared._training_file import run
from ._checkpoint import Training
from ._distill import Seen, copied, distill_layer, nbytes
from ._groups import groups_of
from ._loss import check_range, classes_of, exact, loss_of, outputs_of
from ._memory import PeakMemory
from ._narrow import coded_of, narrowed
from ._normalise import statistics_of
from ._overlap import fill, load_state
from ._passes import ModelWithPasses
from ._replacement import declare_tie, dense_of, generated_in_place_of, is_whole, owners_of, ties_of, weights_of
from ._step import step_of
from ._structures import note_structures, noted_structures
from .layers import GeneratedWeight
from .layers._adapted import MODULES
from .layers._hooks import without_hooks
from .layers._kinds import kind_of, kind_of_generated
from .layers._slice import Weight


class TorchModel(ModelWithPasses):
    """A :class:`adtn.compression.Model` for PyTorch."""

    modules = MODULES
    model: nn.Module
    _weights: dict[str, GeneratedWeight]

    def __init__(self, model: nn.Module, device: str | None) -> None:
        super().__init__(model)
        first = next(model.parameters(), None)
        if first is None:
            raise CompressError(NO_PARAMETERS)
        for name, p in model.named_parameters():
            if isinstance(p, nn.parameter.UninitializedParameter) or p.is_meta:
                raise CompressError(f"Parameter {name!r} has no values yet; load the weights, or run the model once.")
            if p.is_inference():
                raise CompressError(f"Parameter {name!r} was made in inference mode; make or load the model outside.")
        here = str(first.device)
        if device is not None and device.removeprefix("torch:") != here.removesuffix(":0"):
            raise DeviceError(f"Got device={device!r} for a model on {here!r}; move it first, with model.to(...).")
        self._where = here
        generated = [name for name, module in model.named_modules() if isinstance(module, GeneratedWeight)]
        self._noted = noted_structures(model, generated)  # of an earlier compression

    def layers(self) -> list[Layer]:
        """List the modules that have parameters of their own; an attention includes the modules inside it."""
        layers: list[Layer] = []
        inside = tuple(f"{name}." for name, module in self.model.named_modules() if is_whole(module))
        owners = owners_of(self.model)
        for name, module in self.model.named_modules():
            params = module.parameters(recurse=is_whole(module))
            if next(params, None) is None or name.startswith(inside or "\0"):
                continue
            weights, reason = weights_of(name, module)
            tied, together = ties_of(name, module, weights, owners)
            if tied and not reason and not together:
                reason = f"shares its weight with {', '.join(other or 'the model itself' for other in tied)}"
            dense = dense_of(module)
            kind = kind_of(dense)
            layers.append(
                Layer(
                    name=name,
                    kind=type(dense).__name__,
                    weights=weights,
                    tied=tied,
                    reason=reason,
                    itemsize=max(p.element_size() for p in module.parameters()),
                    optional=kind.optional(dense),
                    adaptable=kind.adaptable,
                    place=_place_of(dense),
                )
            )
        return layers

    def weight(self, name: str) -> np.ndarray:
        """Read a weight in the orientation of the generated layer."""
        dense, part = self._owner(name)
        kind = kind_of(dense)
        return kind.oriented(kind.parameter(dense, part)).detach().cpu().double().numpy()

    def _copied(self) -> nn.Module:
        return _copy(self.model)

    def _take_values(self, dense: nn.Module) -> None:
        load_state(self.model, dense.state_dict())

    def _replacements(
        self, layer: Layer, weights: Mapping[str, Weight], places: Mapping[str, nn.Module]
    ) -> dict[str, nn.Module]:
        replacements: dict[str, nn.Module] = {}
        for name in (layer.name, *layer.tied):
            module = generated_in_place_of(places[name], layer, weights)
            declare_tie(module, places[name], again=name != layer.name)
            replacements |= {place: module for place, dense in places.items() if dense is places[name]}
        return replacements

    def _changed(self, generators: Mapping[str, Generator]) -> None:
        note_structures(self.model, generators, self._noted)

    def check(self, tuning: Tuning) -> None:
        """Refuse Adam in float16, and CUDA graphs on other devices."""
        halves = any(p.dtype is torch.float16 for p in self.model.parameters())
        if halves and tuning.optimizer == "adam":
            raise CompressError(
                "Got float16 parameters to train with Adam, where squares of small gradients underflow; train in "
                "float32 or bfloat16 and call model.half() afterwards, or pass tune_optimizer='sgd'."
            )
        if tuning.capture and not self._where.startswith("cuda"):
            raise CompressError(f"Got capture=True on '{self._where}'; only CUDA can capture graphs. Leave it out.")

    def _tune(
        self,
        data: Iterable[Any],
        loss: Callable[..., Any] | None,
        tuning: Tuning,
        report: Callable[[int, float], bool | None],
    ) -> list[float]:
        groups = groups_of(self.model, [p for w in self._weights.values() for p in w.parameters()], tuning)
        frozen = [p for p in groups.pop(0.0, []) if p.requires_grad]
        refuse_nothing(groups)
        teacher = self._dense.eval() if tuning.distill and self._dense is not None else None

        def value(batch: Any) -> torch.Tensor:
            with ExitStack() as stack:
                for name in self._shared:  # once for all of its layers
                    stack.enter_context(self._weights[name].once())
                return loss_of(self.model, batch, loss, teacher, tuning.distill)

        update = step_of(value, groups, tuning)
        training = Training(self.model, update.optimizer, tuning.checkpoint)

        def step(batch: Any, n: int) -> float:
            return float(update(self._to_device(batch), n))

        with self._training(frozen, tuning):
            try:
                return run(training, step, cycled(data, tuning.steps), tuning, report)
            finally:
                update.optimizer.zero_grad()  # a user may accumulate gradients from the start

    @contextmanager
    def _training(self, frozen: Sequence[nn.Parameter], tuning: Tuning) -> Generated[None, None, None]:
        """Switch to training mode, freeze some parameters and seed random numbers inside this block."""
        was_training = self.model.training
        dropouts = self._set_dropout(tuning.dropout)
        try:
            for p in frozen:
                p.requires_grad_(False)
            self.model.train()
            with self._own_random(tuning.seed):
                yield
        finally:
            for p in frozen:
                p.requires_grad_(True)
            for module, rate in dropouts:
                module.p = rate
            self.model.train(was_training)

    @contextmanager
    def _own_random(self, seed: int) -> Generated[None, None, None]:
        devices = [self._where] if self._where.startswith("cuda") else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield

    def _set_dropout(self, rate: float | None) -> list[tuple[Any, float]]:
        """Set the rate of all dropouts, and return their previous rates."""
        if rate is None:
            return []
        dropouts: list[Any] = [m for m in self.model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]  # pyright: ignore[reportPrivateUsage]
        before = [(module, module.p) for module in dropouts]
        for module in dropouts:
            module.p = rate
        return before

    def _job(self, name: str, data: Iterable[Any], tuning: Tuning, *, chained: bool) -> tuple[Any, ...]:
        return distill_layer, without_hooks(self.model.get_submodule(name)), self._seen(name, data, chained), tuning

    def _take_generator(self, weight: GeneratedWeight, other: GeneratedWeight) -> None:
        weight.load_state_dict(other.state_dict())

    def _take_layer(self, name: str, values: Any) -> None:
        load_state(self.model.get_submodule(name), values)

    def _look_at_inputs(
        self, model: nn.Module, names: Sequence[str], batch: Any, look: Callable[[str, Any, Any | None], None]
    ) -> None:
        def look_at(name: str, dense: nn.Module, _: Any, inputs: Any, __: Any) -> None:
            rows = kind_of(dense).rows(dense, inputs[0].detach()) if inputs else None  # all may be keywords
            look(name, inputs[0] if inputs else None, rows if rows is None else exact(rows))

        owners = {name: self._owner(name) for name in names}
        looks = [
            (model.get_submodule(name), partial(look_at, name, dense))
            for name, (dense, part) in owners.items()
            if not part
        ]
        with self._watched(looks), self._evaluating():
            model.eval()
            outputs_of(model, self._to_device(batch))

    def called(self, names: Sequence[str], data: Iterable[Any]) -> list[str]:
        called: dict[str, None] = {}

        def look(name: str, *_: Any) -> None:
            called[name] = None

        looks = [(self.model.get_submodule(name), partial(look, name)) for name in names]
        with self._watched(looks), self._evaluating():
            outputs_of(self.model, self._to_device(next(cycled(data, 1))))
        return list(called)

    def _seen(self, name: str, data: Iterable[Any], chained: bool) -> list[Seen]:
        """Return the inputs and outputs of a layer for as many batches as fit the memory for them."""
        dense: Any = self._dense.eval()
        seen: list[Seen] = []

        def run_batch(batch: Any) -> int:
            batch = self._to_device(batch)
            calls = self._calls(dense, name, batch)
            seen.extend(with_inputs(calls, self._calls(self.model, name, batch)) if chained else calls)
            return sum(map(nbytes, seen))

        with self._evaluating():
            seen_by(name, map(run_batch, data))
        return seen

    def _calls(self, model: nn.Module, name: str, batch: Any) -> list[Seen]:
        """Return the inputs and outputs of all calls of a layer for one batch."""
        calls: list[Seen] = []

        def look(_: Any, inputs: Any, options: dict[str, Any], output: Any) -> None:
            y = output[0] if isinstance(output, tuple) else output
            calls.append((copied(inputs), copied(options), copied(y)))

        with self._watched([(model.get_submodule(name), look)], with_kwargs=True):
            outputs_of(model, batch)
        return calls

    @contextmanager
    def _watched(self, looks: Sequence[tuple[nn.Module, Any]], **options: Any) -> Generated[None, None, None]:
        """Call functions with the inputs and outputs of modules inside this block."""
        hooks = [module.register_forward_hook(look, **options) for module, look in looks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _losses(self, data: Iterable[Any], loss: Callable[..., Any] | None) -> list[float]:
        with self._evaluating():
            return [float(loss_of(self.model, self._to_device(batch), loss, None, 0.0)) for batch in data]

    def _outputs_on(self, data: Iterable[Any]) -> Iterator[Any]:
        with self._evaluating():
            for batch in data:
                yield outputs_of(self.model, self._to_device(batch))

    def normalise(self, data: Iterable[Any]) -> bool:
        """Correct the running statistics of batch normalisation by how the statistics of the batches changed."""
        batches = [self._to_device(batch) for batch in data]
        now = statistics_of(self.model, batches)
        if not now or self._dense is None:
            return False
        dense = statistics_of(self._dense, batches)
        for name, (mean, variance) in now.items():
            norm: Any = self.model.get_submodule(name)
            before: Any = self._dense.get_submodule(name)
            change = variance / dense[name][1].clamp_min(torch.finfo(variance.dtype).tiny)
            norm.running_mean.copy_(before.running_mean + mean - dense[name][0])
            norm.running_var.copy_(before.running_var * change)
        return True

    def _counted(self, data: Iterable[Any]) -> Iterator[tuple[int, int] | None]:
        with self._evaluating():
            for batch in data:
                batch = self._to_device(batch)
                outputs = outputs_of(self.model, batch)
                try:
                    scores, labels = classes_of(self.model, outputs, batch)
                except CompressError:
                    yield None
                    return
                check_range(scores, labels)
                yield int((scores.argmax(-1) == labels).sum()), int((labels != IGNORED).sum())

    def state(self) -> dict[str, torch.Tensor]:
        """Copy the state."""
        state = self.model.state_dict()
        return {name: x.detach().clone() if torch.is_tensor(x) else copy.deepcopy(x) for name, x in state.items()}

    def digest(self) -> str:
        """Return a digest of the state."""
        return fingerprint(dict(self.model.state_dict()))

    def set_state(self, state: dict[str, torch.Tensor]) -> None:
        """Set every tensor."""
        load_state(self.model, state)

    def load(self, path: Path) -> None:
        """Load the state from a safetensors file."""
        from safetensors import safe_open
        from safetensors.torch import load_file, load_model

        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
        state = load_file(path)
        for name, (x, dtype) in decoded_arrays(metadata, state, lambda x: x.numpy()).items():
            state[name] = torch.tensor(x, dtype=getattr(torch, dtype))
        state |= {name: state[first] for name, first in metadata.items() if first in state and name not in state}
        if KEY in metadata or state.keys() >= self.model.state_dict().keys():
            load_state(self.model, state)
        else:  # of another program, in which tied tensors may be left out
            load_model(self.model, path)

    def content(self, metadata: Mapping[str, str], rest: Precision | None = None) -> bytes:
        """Return the state as a safetensors file; shared tensors are stored once, and their names in the metadata."""
        from safetensors.torch import save

        tensors: dict[str, torch.Tensor] = {}
        names: dict[Any, str] = {}
        shared: dict[str, str] = {}
        codes = CodedArrays()
        generated, memory = self._generated_names(), set[int]()
        for name, x in self.model.state_dict().items():
            if not torch.is_tensor(x):
                raise CompressError(
                    f"Got {name!r} of type {type(x).__name__} in the state of the model; expected tensors, which a "
                    "file can hold. Remove the extra state, or pass a topology instead of a budget in bytes."
                )
            place = (x.device, x.untyped_storage().data_ptr(), x.storage_offset(), x.shape, x.stride())
            first = names.setdefault(place if x.numel() else name, name)
            if first != name:
                shared[name] = first
            elif name in generated or rest is None:
                tensors[name] = x.contiguous()
            elif (own := coded_of(x, rest)) is not None:
                tensors[name] = torch.from_numpy(codes.add(name, own, str(x.dtype).removeprefix("torch.")))
            else:
                tensors[name] = narrowed(x, half_of(rest))
            if name in tensors:  # views of the same memory are stored one by one
                data = tensors[name].untyped_storage().data_ptr()
                tensors[name] = tensors[name].clone() if data in memory else tensors[name]
                memory.add(data)
        return save(tensors, {**shared, **codes.metadata(), **metadata})

    def save(self, path: Path, metadata: Mapping[str, str], rest: Precision | None = None) -> None:
        """Save the state to a safetensors file; see :meth:`content`."""
        write_bytes(path, sealed(self.content(metadata, rest)))

    def narrow(self, rest: Precision) -> None:
        """Round what is not generated to the values that are stored."""
        generated = self._generated_names()
        for name, x in self.model.state_dict().items():
            if name not in generated and torch.is_tensor(x):
                own = coded_of(x, rest)
                fill(x, narrowed(x, half_of(rest)) if own is None else torch.from_numpy(own.decode()))

    def _generated_names(self) -> set[str]:
        modules = self.model.named_modules(remove_duplicate=False)  # each place of those that layers share
        weights = [(name, m) for name, m in modules if isinstance(m, GeneratedWeight)]
        return {f"{name}.{key}" for name, m in weights for key in m.state_dict()}

    def sizes(self) -> tuple[int, int]:
        """Count the parameters and their bytes; cores that are stored as codes count as well."""
        params = list(self.model.parameters())
        coded = [m.coded for m in self.model.modules() if isinstance(m, GeneratedWeight)]
        return (
            sum(p.numel() for p in params) + sum(entries for entries, _ in coded),
            sum(p.numel() * p.element_size() for p in params) + sum(nbytes for _, nbytes in coded),
        )

    def resident_bytes(self) -> int:
        """Count the bytes of parameters and buffers; several that share memory count once."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())

    def forward_costs(self, data: Iterable[Any]) -> tuple[ForwardCost, ForwardCost]:
        """Measure inference on the first batch; the memory includes what is generated and then cached."""
        batch = self._to_device(next(cycled(data, 1)))

        def run_of(model: nn.Module) -> Callable[[], None]:
            def run() -> None:
                outputs_of(model, batch)
                if self._where.startswith("cuda"):
                    torch.cuda.synchronize(self._where)

            return run

        self._dense.eval()
        runs = {"dense": run_of(self._dense), "now": run_of(self.model)}
        peaks: dict[str, int] = {}
        with self._evaluating():
            for name, run in runs.items():
                with PeakMemory() as memory:
                    run()
                peaks[name] = memory.peak_bytes
            times = seconds_in_turns(runs, most=50)
        dense, now = (ForwardCost(seconds=times[name], peak_bytes=peaks[name]) for name in runs)
        return dense, now

    def _rows(self, data: Iterable[Any]) -> dict[str, int]:
        rows: dict[str, int] = {}

        def look(name: str, batch: Any, layer: Any, inputs: Any, _: Any) -> None:
            rows[name] = batch(layer, inputs[0])

        looks: list[tuple[nn.Module, Any]] = []
        for name in self._alone:
            place = name if name in self._originals else name.rpartition(".")[0]
            layer = self.model.get_submodule(place)
            kind = kind_of_generated(layer)
            if kind is not None:
                looks.append((layer, partial(look, name, kind.batch)))
        with self._watched(looks), self._evaluating():
            outputs_of(self.model, self._to_device(next(cycled(data, 1))))
        return rows

    def _planned_on(self, weight: GeneratedWeight) -> tuple[str, str | None]:
        return f"torch:{self._where}", str(weight.dtype).removeprefix("torch.")

    def _to_device(self, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return {k: self._to_device(v) for k, v in batch.items()}
        if isinstance(batch, tuple | list):
            return tuple(self._to_device(v) for v in batch)
        return torch.as_tensor(batch).to(self._where)

    @contextmanager
    def _evaluating(self) -> Generated[None, None, None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

    def _owner(self, name: str) -> tuple[Any, str]:
        """Return the dense module of a weight, and which of its weights it is; empty for its only one."""
        owner, _, part = name.rpartition(".")
        parent = self._original(owner)
        if part in kind_of(parent).parts(parent):
            return parent, part
        return self._original(name), ""


def _place_of(layer: nn.Module) -> str:
    """Return the dtype and the device of the first parameter."""
    first = next(layer.parameters())
    return f"{str(first.dtype).removeprefix('torch.')} on {first.device}"


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise CompressError(
            f"Cannot copy the model ({error}); the copy serves as teacher and to undo the compression. Make pruning "
            "and weight norms permanent first (torch.nn.utils.prune.remove, remove_weight_norm)."
        ) from error
