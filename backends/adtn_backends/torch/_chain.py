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

    def holds(self, name: str) -> bool:
        """Return whether a layer is inside one of the blocks."""
        return name.startswith(tuple(f"{block}." for block in self.blocks))

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
        Parameters of which none requires a gradient.
    run : callable
        ``run()`` returns the outputs of the model for some batch. Its graph shows whether each block depends on the one
        before it only, and the outputs on the last one.
    """
    containers = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) in (nn.ModuleList, nn.Sequential) and len(dict(module.named_children())) >= _LEAST
    ]
    if not containers:
        return None
    name, container = max(containers, key=lambda one: sum(p.numel() for p in one[1].parameters()))
    blocks = dict(container.named_children())
    if any("forward" in vars(block) for block in blocks.values()):
        return None  # it is wrapped by another library
    cut = _Cut()
    hooks = [block.register_forward_hook(cut) for block in blocks.values()]
    try:
        with torch.enable_grad():
            cut(None, None, run())
    except RuntimeError:  # such as changes of graphs in place
        return None
    finally:
        for hook in hooks:
            hook.remove()
    if not cut.is_chain or cut.called != [*blocks.values(), None]:
        return None
    return Chain([f"{name}.{place}" if name else place for place in blocks])


class _Cut:
    """A hook that cuts the graph behind every block, so that the graph of the next one begins there."""

    def __init__(self) -> None:
        self.called: list[nn.Module | None] = []
        self.is_chain = True
        self._last: list[torch.Tensor] = []

    def __call__(self, module: nn.Module | None, inputs: Any, output: Any) -> Any:
        begins = {id(leaf) for leaf in self._last}
        found = {id(leaf) for x in _tensors(output) for leaf in _leaves(x)}
        self.is_chain &= found <= begins and bool(found) == bool(self.called)
        self.called.append(module)
        self._last = []
        return _mapped(self._begun, output)

    def _begun(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return x
        self._last.append(x.detach().requires_grad_())
        return self._last[-1].clone()  # which may be changed in place


def _leaves(x: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors where the graph of a tensor begins."""
    found: list[torch.Tensor] = []
    nodes, seen = [x.grad_fn], set[Any]()
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found += [node.variable] if hasattr(node, "variable") else []
        nodes += [other for other, _ in node.next_functions]
    return found


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
