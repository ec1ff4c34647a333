"""Models that are a chain of blocks, of which only a part is run again after a change of that part.

The blocks of a decoder or an encoder pass one array from each to the next. Where weights change in the order of calls,
the outputs of the block before the first change are kept, and earlier blocks return them without being run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_LEAST = 4  # blocks: with fewer, hardly anything is saved
_LARGEST = 1 << 30  # bytes of outputs that are kept


class Chain:
    """The outputs of one block of a model for several batches, from which passes go on.

    Parameters
    ----------
    blocks : sequence of str
        The names of the blocks, in the order of their calls.
    """

    def __init__(self, blocks: Sequence[str]) -> None:
        self.blocks = blocks
        self._kept: dict[Any, tuple[int, Any]] = {}  # by pass, the first block that is run and what it is given

    @contextmanager
    def resumed(self, model: nn.Module, key: Any, names: Sequence[str]) -> Generator[None, None, None]:
        """Skip the blocks before the first one of these layers inside this block, where their outputs are kept.

        Parameters
        ----------
        model : torch.nn.Module
        key : hashable
            The model and the batch of this pass.
        names : sequence of str
            Layers. Weights of blocks before their first one must not change any more.
        """
        first = min((self._block_of(name) for name in names), default=0)
        start, output = self._kept.get(key, (0, None))
        if first < start:  # earlier weights may have changed
            self._kept.pop(key)
            start = 0
        hooks: list[Any] = []

        def keep(module: nn.Module, inputs: Any, found: Any) -> None:
            if self._has_room(key, found):
                self._kept[key] = first, found

        skipped = [model.get_submodule(name) for name in self.blocks[:start]]
        try:
            for block in skipped:
                block.forward = lambda *_, **__: output
            if first > start:
                hooks.append(model.get_submodule(self.blocks[first - 1]).register_forward_hook(keep))
            yield
        finally:
            for block in skipped:
                del block.forward
            for hook in hooks:
                hook.remove()

    def _block_of(self, name: str) -> int:
        return next((n for n, block in enumerate(self.blocks) if name.startswith(f"{block}.")), 0)

    def _has_room(self, key: Any, output: Any) -> bool:
        others = sum(_bytes(kept) for other, (_, kept) in self._kept.items() if other != key)
        return others + _bytes(output) <= _LARGEST


def chain_of(model: nn.Module, run: Callable[[], Any]) -> Chain | None:
    """Find the blocks of a model that is a chain; ``None`` if it is not.

    Parameters
    ----------
    model : torch.nn.Module
    run : callable
        ``run()`` returns the outputs of the model for some batch, without gradients. To see that the output of a block
        is used by the next one only, it is run once more with outputs that are overwritten behind that.
    """
    containers = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) in (nn.ModuleList, nn.Sequential) and len(module) >= _LEAST
    ]
    if not containers:
        return None
    name, container = max(containers, key=lambda one: sum(p.numel() for p in one[1].parameters()))
    blocks = [f"{name}.{n}" if name else n for n, _ in container.named_children()]
    if any(vars(block).get("forward") for block in container.children()):
        return None  # it is wrapped by another library
    calls: list[nn.Module] = []
    before: list[torch.Tensor] = []

    def spoil(module: nn.Module, inputs: Any, output: Any) -> Any:
        calls.append(module)
        for x in before:
            x.fill_(float("nan"))
        copy = _mapped(torch.clone, output)
        before[:] = [x for x in _tensors(copy) if x.is_floating_point()]
        return copy

    wanted = run()
    hooks = [block.register_forward_hook(spoil) for block in container.children()]
    try:
        found = run()
    finally:
        for hook in hooks:
            hook.remove()
    is_chain = calls == list(container.children()) and len(set(calls)) == len(calls) and _equal(wanted, found)
    return Chain(blocks) if is_chain else None


def _equal(wanted: Any, found: Any) -> bool:
    return torch.is_tensor(wanted) and torch.is_tensor(found) and torch.equal(wanted, found)


def _tensors(x: Any) -> list[torch.Tensor]:
    if torch.is_tensor(x):
        return [x]
    return [tensor for part in x for tensor in _tensors(part)] if isinstance(x, tuple | list) else []


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], x: Any) -> Any:
    if torch.is_tensor(x):
        return function(x)
    return type(x)(_mapped(function, part) for part in x) if type(x) in (tuple, list) else x


def _bytes(x: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(x))
