"""A PyTorch model whose layers are replaced by generated ones."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Generator as Generated
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn import Generator
from adtn._files import sealed, write_bytes
from adtn.compression import Layer, Tuning
from adtn.errors import CompressError, DeviceError
from adtn.optim import fingerprint
from adtn.schedule import decide
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..shared._batches import IGNORED, cycled
from ._checkpoint import Training
from ._distill import Seen, distill_layer
from ._loss import check_range, classes_of, loss_of, outputs_of
from ._memory import PeakMemory
from ._replacement import declare_tie, generated_in_place_of, generated_parts, owners_of, weights_of
from ._step import step_of
from .huggingface import note_structures
from .layers import Adapted, ADTNLinear, GeneratedWeight, add_adapter
from .layers._adapted import adapted_layers
from .layers._hooks import without_hooks
from .layers._like import STANDARD, weight_shape
from .layers._linear import is_transposed

_CACHED_BYTES = 1 << 30  # of one layer's inputs and outputs
_LARGEST_MOMENT = 1 << 26  # entries: beyond, the second moment of the inputs takes more than the weight is worth


class TorchModel:
    """See :class:`adtn.compression.Model`."""

    def __init__(self, model: nn.Module, device: str | None) -> None:
        self.model = model
        first = next(model.parameters(), None)
        if first is None:
            raise CompressError("Got a model without parameters; there is nothing to compress.")
        for name, p in model.named_parameters():
            if isinstance(p, nn.parameter.UninitializedParameter) or p.is_meta:
                raise CompressError(f"Parameter {name!r} has no values yet; load the weights, or run the model once.")
            if p.is_inference():
                raise CompressError(f"Parameter {name!r} was made in inference mode; make or load the model outside.")
        here = str(first.device)
        if device is not None and device.removeprefix("torch:") != here.removesuffix(":0"):
            raise DeviceError(f"Got device={device!r} for a model on {here!r}; move it first, with model.to(...).")
        self._where = here
        self._originals: dict[str, nn.Module] = {}
        self._weights: dict[str, GeneratedWeight] = {}
        self._dense: nn.Module | None = None
        self._active: list[tuple[Adapted, tuple[str, ...], bool]] = []

    def layers(self) -> list[Layer]:
        """Modules with parameters of their own; what is inside an attention belongs to it."""
        found: list[Layer] = []
        inside = tuple(f"{n}." for n, m in self.model.named_modules() if _is_whole(m))
        owners = owners_of(self.model)
        for name, module in self.model.named_modules():
            own = module.parameters(recurse=_is_whole(module))
            if next(own, None) is None or name.startswith(inside or "\0"):
                continue
            weights, reason = weights_of(name, module)
            base = module.base_layer if isinstance(module, Adapted) else module
            within = f"{name}." if name else ""
            shared = [
                owner
                for part in generated_parts(name, base, weights)
                for owner in owners[id(part)]
                if owner[1] is not base and not owner[0].startswith(within or "\0")
            ]
            tied = tuple(dict.fromkeys(owner for owner, _, _ in shared))
            plain = all(isinstance(m, nn.Linear | nn.Embedding) and part == "weight" for _, m, part in shared)
            if tied and not reason and not (plain and isinstance(module, nn.Linear | nn.Embedding)):
                reason = f"shares its weight with {', '.join(one or 'the model itself' for one in tied)}"
            size = max(p.element_size() for p in module.parameters())
            own_form = weight_shape(base) is not None
            optional = not (own_form or isinstance(base, (*STANDARD, nn.MultiheadAttention)))
            found.append(Layer(name, type(base).__name__, weights, tied, reason, size, optional, own_form))
        return found

    def weight(self, name: str) -> np.ndarray:
        """In the orientation of the generated layer."""
        owner, part = self._owner(name)
        if isinstance(owner, nn.MultiheadAttention):
            found = owner.in_proj_weight if part == "in_proj" else owner.out_proj.weight
        else:
            found = owner.weight.T if is_transposed(owner) else getattr(owner, part or "weight")
        return found.detach().cpu().double().numpy()

    def second_moments(self, names: Sequence[str], data: Iterable[Any]) -> dict[str, np.ndarray]:
        """Of linear layers and ungrouped convolutions; others are left out."""
        shapes = {name: shape for layer in self.layers() for name, shape in layer.weights.items()}
        sums: dict[str, torch.Tensor] = {}
        counts: dict[str, int] = {}
        hooks: list[Any] = []
        for name in names:
            owner, part = self._owner(name)
            large = math.prod(shapes[name][1:]) ** 2 > _LARGEST_MOMENT
            if part or large or isinstance(owner, nn.Embedding) or weight_shape(owner) is None:
                continue
            if isinstance(owner, nn.Conv1d | nn.Conv3d) or (isinstance(owner, nn.Conv2d) and owner.groups > 1):
                continue

            def look(module: Any, inputs: Any, _: Any, name: str = name) -> None:
                rows = _patches(module, inputs[0].detach()).double()
                found = (rows.T @ rows).cpu()
                sums[name] = sums[name] + found if name in sums else found
                counts[name] = counts.get(name, 0) + rows.shape[0]

            hooks.append(owner.register_forward_hook(look))
        try:
            with torch.no_grad(), self._evaluating():
                for batch in data:
                    outputs_of(self.model, self._to_device(batch))
        finally:
            for hook in hooks:
                hook.remove()
        return {name: (total / counts[name]).numpy() for name, total in sums.items()}

    def install(self, generators: Mapping[str, Generator]) -> None:
        """Everything is made first; then modules change places."""
        weights: dict[str, GeneratedWeight] = {}
        shapes = {name: shape for layer in self.layers() for name, shape in layer.weights.items()}
        for name, generator in generators.items():
            if shapes.get(name) != generator.shape:
                raise CompressError(
                    f"Got a generator of {generator.shape} for {name!r}, whose weight is {shapes.get(name)}; "
                    "pass the model that was compressed."
                )
            owner, _ = self._owner(name)
            like = next(owner.parameters())
            weights[name] = GeneratedWeight(generator).to(like.device, like.dtype)
        made: dict[str, nn.Module] = {}
        places: dict[int, list[str]] = {}
        for name, module in self.model.named_modules(remove_duplicate=False):
            places.setdefault(id(module), []).append(name)
        for layer in self.layers():
            for name in layer.weights:
                if name in weights:
                    if isinstance(self.model.get_submodule(layer.name), Adapted):
                        raise CompressError(f"Layer {layer.name!r} has adapters; merge and remove them first.")
                    for who in (layer.name, *layer.tied):
                        dense = self.model.get_submodule(who)
                        module = generated_in_place_of(dense, layer, who, weights)
                        if who != layer.name:
                            declare_tie(module)
                        for place in places[id(dense)]:  # a module may have several
                            made[place] = module
        self._dense = _copy(self.model)
        self._originals = {name: self.model.get_submodule(name) for name in made}
        self._weights = weights
        for name, module in made.items():
            self._put(name, module)
        note_structures(self.model, generators)

    def adapt(self, generators: Mapping[str, Generator], name: str) -> None:
        """See :class:`adtn_backends.torch.Adapted`."""
        before = [layer for _, layer in adapted_layers(self.model)]
        self._active = [(layer, layer.active, layer.merged) for layer in before]
        for layer in before:
            layer.unmerge()
        self._dense = _copy(self.model)
        originals = {where: self.model.get_submodule(where) for where in generators}
        add_adapter(self.model, generators, name)
        self._originals = originals
        layers: dict[str, Any] = {where: self.model.get_submodule(where) for where in generators}
        self._weights = {where: layer.adapters[name].generated for where, layer in layers.items()}

    def restore(self) -> None:
        """The very modules that were there, with the numbers they had: training may have changed others, too."""
        for name, module in self._originals.items():
            self._put(name, module)
        if self._dense is not None:
            self.model.load_state_dict(self._dense.state_dict())
        for layer, active, merged in self._active:
            layer.active = active
            if merged:
                layer.merge()
        self._active = []
        self._originals, self._weights, self._dense = {}, {}, None
        note_structures(self.model, {})

    def check(self, tuning: Tuning) -> None:
        """Adam needs numbers beyond float16, and only CUDA records."""
        halves = any(p.dtype is torch.float16 for p in self.model.parameters())
        if halves and tuning.optimizer == "adam":
            raise CompressError(
                "Got float16 parameters to train with Adam, whose squares of small gradients are zero there; train in "
                "float32 or bfloat16 and call model.half() afterwards, or pass tune_optimizer='sgd'."
            )
        if tuning.capture and not self._where.startswith("cuda"):
            raise CompressError(f"Got capture=True on '{self._where}'; CUDA alone can record. Leave it out.")

    def tune(
        self, data: Iterable[Any], loss: Callable[..., Any] | None, tuning: Tuning, report: Callable[[int, float], None]
    ) -> list[float]:
        """With a cosine, in training mode; batches are cycled through."""
        self.check(tuning)
        cores = {id(p) for w in self._weights.values() for p in w.parameters()}
        groups: dict[float, list[nn.Parameter]] = {}
        for name, p in self.model.named_parameters():
            rate = next((r for pattern, r in tuning.rates.items() if fnmatchcase(name, pattern)), 1.0)
            rate *= p.requires_grad and (tuning.train == "all" or id(p) in cores)
            groups.setdefault(rate, []).append(p)
        frozen = [p for p in groups.pop(0.0, []) if p.requires_grad]
        if not groups:
            raise CompressError("Got rates that leave nothing to train; give some parameters a rate above 0.")
        teacher = self._dense.eval() if tuning.distill and self._dense is not None else None
        step = step_of(lambda batch: loss_of(self.model, batch, loss, teacher, tuning.distill), groups, tuning)
        training = Training(self.model, step.optimizer, tuning.checkpoint)
        losses = training.read()
        was_training = self.model.training
        dropouts = self._set_dropout(tuning.dropout)
        try:
            for p in frozen:
                p.requires_grad_(False)
            self.model.train()
            with self._own_random(tuning.seed):
                batches = cycled(data, tuning.steps)
                for _ in losses:  # the data draw what they drew
                    training.data.see(next(batches))
                training.restore_random()
                for batch in batches:
                    training.data.see(batch)
                    losses.append(float(step(self._to_device(batch), len(losses))))
                    tuning.check(losses)
                    report(len(losses), losses[-1])
                    if tuning.checkpoint is not None and len(losses) % tuning.every == 0:
                        training.write(losses)
        finally:
            for p in frozen:
                p.requires_grad_(True)
            for module, rate in dropouts:
                module.p = rate
            self.model.train(was_training)
        return losses

    @contextmanager
    def _own_random(self, seed: int) -> Generated[None, None, None]:
        """Random numbers of this seed inside; those of the caller go on behind it where they were."""
        devices = [self._where] if self._where.startswith("cuda") else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield

    def _set_dropout(self, rate: float | None) -> list[tuple[Any, float]]:
        """Their own rates, to be put back."""
        if rate is None:
            return []
        found: list[Any] = [m for m in self.model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
        was = [(module, module.p) for module in found]
        for module in found:
            module.p = rate
        return was

    def distill(self, data: Iterable[Any], tuning: Tuning, executor: Any, say: Callable[[str], None]) -> None:
        """By the mean squared error of the outputs, in units of their spread."""
        assert self._dense is not None
        jobs: dict[str, Any] = {}
        with self._own_random(tuning.seed):
            for name in self._originals:
                task = (without_hooks(self.model.get_submodule(name)), self._seen(name, data), tuning)
                jobs[name] = distill_layer(*task) if executor is None else executor.submit(distill_layer, *task)
        for name, job in jobs.items():
            state, first, last = job if executor is None else job.result()
            self.model.get_submodule(name).load_state_dict(state)
            say(f"{name}: outputs' error {first:.4f} -> {last:.4f}")

    def _seen(self, name: str, data: Iterable[Any]) -> list[Seen]:
        """Inputs and outputs of a dense layer, as many batches as memory is given for."""
        assert self._dense is not None
        kept: list[Seen] = []

        def look(_: Any, inputs: Any, options: dict[str, Any], output: Any) -> None:
            y = output[0] if isinstance(output, tuple) else output
            kept.append((tuple(x.detach() for x in inputs), options, y.detach()))

        hook = self._dense.get_submodule(name).register_forward_hook(look, with_kwargs=True)
        dense = self._dense.eval()
        try:
            with torch.no_grad():
                for batch in data:
                    outputs_of(dense, self._to_device(batch))
                    held = sum(x.numel() * x.element_size() for xs, _, y in kept for x in (*xs, y))
                    if held > _CACHED_BYTES:
                        break
        finally:
            hook.remove()
        if not kept:
            raise CompressError(f"No batch reached layer {name!r}; pass data that use it.")
        return kept

    def loss_on(self, data: Iterable[Any], loss: Callable[..., Any] | None) -> float:
        """In evaluation mode."""
        with torch.no_grad(), self._evaluating():
            found = [float(loss_of(self.model, self._to_device(batch), loss, None, 0.0)) for batch in data]
        if not found:
            raise CompressError("Got data without a batch; pass a list or a DataLoader.")
        return statistics.fmean(found)

    def accuracy(self, data: Iterable[Any]) -> float | None:
        """Of the largest output."""
        right = total = 0
        with torch.no_grad(), self._evaluating():
            for batch in data:
                batch = self._to_device(batch)
                outputs = outputs_of(self.model, batch)
                try:
                    scores, labels = classes_of(self.model, outputs, batch)
                except CompressError:
                    return None
                check_range(scores, labels)
                right += int((scores.argmax(-1) == labels).sum())
                total += int((labels != IGNORED).sum())
        if not total:
            raise CompressError("Got test data without a batch; pass some, or leave test out.")
        return 100.0 * right / total

    def score(self, score: Callable[[Any], Any]) -> float:
        """In evaluation mode, without gradients."""
        with torch.no_grad(), self._evaluating():
            return float(score(self.model))

    def generators(self) -> dict[str, Generator]:
        """Of all installed weights."""
        return {name: weight.generator() for name, weight in self._weights.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the state."""
        return {name: x.detach().clone() for name, x in self.model.state_dict().items()}

    def digest(self) -> str:
        """Of the state, tensor by tensor."""
        return fingerprint(dict(self.model.state_dict()))

    def set_state(self, state: dict[str, torch.Tensor]) -> None:
        """Every tensor of it."""
        self.model.load_state_dict(state)

    def load(self, path: Path) -> None:
        """From safetensors."""
        from safetensors.torch import load_model

        load_model(self.model, path)

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """To safetensors; what is shared is stored once, under the name that the metadata give."""
        from safetensors.torch import save

        tensors: dict[str, torch.Tensor] = {}
        found: dict[Any, str] = {}
        shared: dict[str, str] = {}
        for name, x in self.model.state_dict().items():
            place = (x.device, x.untyped_storage().data_ptr(), x.storage_offset(), x.shape, x.stride())
            first = found.setdefault(place if x.numel() else name, name)
            if first == name:
                tensors[name] = x.contiguous()
            else:
                shared[name] = first
        write_bytes(path, sealed(save(tensors, {**shared, **metadata})))

    def numbers(self) -> tuple[int, int]:
        """Parameters, and their bytes."""
        own = list(self.model.parameters())
        return sum(p.numel() for p in own), sum(p.numel() * p.element_size() for p in own)

    def forward_cost(self, data: Iterable[Any]) -> tuple[float, int | None]:
        """Of inference on the first batch; a kept weight is made in it."""
        batch = self._to_device(next(cycled(data, 1)))
        with torch.no_grad(), self._evaluating():

            def run() -> None:
                outputs_of(self.model, batch)
                if self._where.startswith("cuda"):
                    torch.cuda.synchronize(self._where)

            with PeakMemory() as memory:
                run()
            times: list[float] = []
            while len(times) < 5 or (sum(times) < 0.3 and len(times) < 50):
                began = time.perf_counter()
                run()
                times.append(time.perf_counter() - began)
        return statistics.median(times), memory.peak_bytes

    def predicted_seconds(self, data: Iterable[Any]) -> dict[str, float]:
        """By the plans for the rows of the first batch; convolutions and embeddings are priced by their weights."""
        rows: dict[str, int] = {}
        hooks: list[Any] = []
        for name in self._weights:
            owner = name.rpartition(".")[0] if name not in self._originals else name
            module = self.model.get_submodule(owner)
            if isinstance(module, ADTNLinear):

                def look(layer: Any, inputs: Any, _: Any, name: str = name) -> None:
                    rows[name] = inputs[0].numel() // layer.in_features

                hooks.append(module.register_forward_hook(look))
        try:
            with torch.no_grad(), self._evaluating():
                outputs_of(self.model, self._to_device(next(cycled(data, 1))))
        finally:
            for hook in hooks:
                hook.remove()
        found: dict[str, float] = {}
        for name, weight in self._weights.items():
            task = ("apply", rows[name]) if rows.get(name) else ("generate", None)
            dtype = str(weight.dtype).removeprefix("torch.")
            plan = decide(weight.generator(), task[0], device=f"torch:{self._where}", dtype=dtype, batch=task[1])
            found[name] = plan.predicted_seconds
        return found

    def _to_device(self, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return {k: self._to_device(v) for k, v in batch.items()}
        if isinstance(batch, tuple | list):
            return tuple(self._to_device(v) for v in batch)
        return torch.as_tensor(batch).to(self._where)

    @contextmanager
    def _evaluating(self) -> Generated[None, None, None]:
        was = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was)

    def _owner(self, name: str) -> tuple[Any, str]:
        """The dense module of a weight, and which of its weights it is; nothing for its only one."""
        owner, _, part = name.rpartition(".")
        parent = self._original(owner)
        if isinstance(parent, nn.MultiheadAttention) or isinstance(getattr(parent, part, None), nn.Parameter):
            return parent, part
        return self._original(name), ""

    def _original(self, name: str) -> Any:
        found = self._originals[name] if name in self._originals else self.model.get_submodule(name)
        return found.base_layer if isinstance(found, Adapted) else found

    def _put(self, name: str, module: nn.Module) -> None:
        owner, _, leaf = name.rpartition(".")
        parent = self.model.get_submodule(owner)
        parent._modules[leaf] = module


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise CompressError(
            f"Cannot copy the model, which is kept as a teacher and against errors: {error}. Make pruning and weight "
            "norms permanent first (torch.nn.utils.prune.remove, remove_weight_norm)."
        ) from error


def _is_whole(module: nn.Module) -> bool:
    """Whether what is inside belongs to it."""
    return type(module) in (nn.MultiheadAttention, Adapted) or is_parametrized(module)


def _patches(module: Any, x: torch.Tensor) -> torch.Tensor:
    """What a layer multiplies its weight with, as rows."""
    if not isinstance(module, nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        around = list(module._reversed_padding_repeated_twice)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = nn.functional.pad(x, around, mode=mode)
        padding: Any = 0
    else:
        padding = module.padding
    columns = nn.functional.unfold(x, module.kernel_size, module.dilation, padding, module.stride)  # type: ignore[arg-type]
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])
