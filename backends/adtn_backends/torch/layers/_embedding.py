"""Embeddings with generated tables."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from adtn import Generator
from adtn._checks import checked
from adtn._typing import Float, Int
from adtn.errors import LayoutError
from torch import nn

from ...shared._from_dense import Fit, FromEmbedding
from ...shared._passage import Passage, Products
from ._calls import differentiable, is_traced, refuse_tracers
from ._kind import Kind
from ._parts import as_weight, fitted_weight, refuse_subclass
from ._slice import Weight

_FEW = 4  # up to one row in four, only the requested rows are generated
_LARGEST_TABLE = 1 << 30  # bytes; larger tables are not cached, and inference generates rows in every call


class ADTNEmbedding(FromEmbedding, nn.Module):
    """An embedding whose table is generated; it replaces :class:`torch.nn.Embedding`.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        The table, ``(num_embeddings, embedding_dim)``. An :class:`ADTNLinear` with the same module is tied to it.
    padding_idx : int, optional
        The index of a row without a gradient; negative ones count from the end.
    scale_grad_by_freq : bool
        Whether to divide the gradient of a row by the number of times that it occurs in the batch.

    Raises
    ------
    LayoutError
        If the weight is not a matrix, or has no row ``padding_idx``.

    Examples
    --------
    >>> import adtn, torch
    >>> table = ADTNEmbedding(adtn.Generator((100, 16), adtn.TTN(bond=2)))
    >>> table(torch.tensor([[1, 2, 99]])).shape
    torch.Size([1, 3, 16])
    """

    max_norm, norm_type, sparse = None, 2.0, False  # for code that reads attributes of dense layers

    @checked(LayoutError)
    def __init__(
        self,
        weight: Generator | Weight,
        padding_idx: int | None = None,
        *,
        scale_grad_by_freq: bool = False,
    ) -> None:
        super().__init__()
        self.generated = as_weight(weight, 2, "an embedding (num_embeddings, embedding_dim)")
        n, self.embedding_dim = self.generated.shape
        self.num_embeddings = n
        if padding_idx is not None and not -n <= padding_idx < n:
            raise LayoutError(f"Got padding_idx={padding_idx} for {n} rows; expected the index of a row, or None.")
        self.padding_idx = padding_idx if padding_idx is None or padding_idx >= 0 else padding_idx + n
        self.scale_grad_by_freq = scale_grad_by_freq

    @classmethod
    def _in_place_of(cls, dense: Any, fit: Fit, **options: Any) -> Self:
        refuse_subclass(dense, nn.Embedding)
        if reason := _refusal(dense):
            raise LayoutError(f"Got an Embedding that ADTNEmbedding cannot replace: {reason}.")
        return cls.like(dense, fitted_weight(dense.weight, fit))

    @classmethod
    def like(cls, dense: nn.Embedding, weight: Weight) -> Self:
        """Make the layer with a given weight, and the options of a dense one."""
        return cls(weight, dense.padding_idx, scale_grad_by_freq=dense.scale_grad_by_freq).train(dense.training)

    @property
    def weight(self) -> Float[torch.Tensor, "num_embeddings embedding_dim"]:
        """The generated table, differentiable."""
        return self.generated.own()

    def to_dense(self) -> nn.Embedding:
        """Make an ordinary embedding with the present table."""
        dense = nn.Embedding.from_pretrained(
            self.weight.detach(),
            freeze=not self.generated.trains,
            padding_idx=self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
        )
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """Return the sizes as the dense layer prints them."""
        padding = f", padding_idx={self.padding_idx}" if self.padding_idx is not None else ""
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"

    def forward(self, input: Int[torch.Tensor, "*batch"]) -> Float[torch.Tensor, "*batch embedding_dim"]:
        """Look up rows, from integers ``(...)`` to ``(..., embedding_dim)``."""
        indices = input  # a name that callers of torch.nn use
        if is_traced() or self.generated.made:
            return self._rows_of(indices, self.generated.now())
        refuse_tracers(self, indices)
        return self.generated(lambda arrays: self._eager(arrays, indices))

    def _eager(self, arrays: dict[str, torch.Tensor], indices: torch.Tensor) -> torch.Tensor:
        weight = self.generated
        trains = differentiable(arrays)
        if not trains and self._has_table:
            return self._rows_of(indices, weight.cached(arrays))
        used, place = _unique(indices)
        if _FEW * used.numel() > self.num_embeddings or not used.numel():
            return self._rows_of(indices, weight.weight_of(arrays) if trains else weight.cached(arrays))
        self.check_range(used)
        rows = weight.rows_of(arrays, used)
        if self.padding_idx is not None:
            rows = torch.where((used == self.padding_idx)[:, None], rows.detach(), rows)
        return nn.functional.embedding(place, rows, scale_grad_by_freq=self.scale_grad_by_freq)

    def check_range(self, used: torch.Tensor) -> None:
        """Refuse indices, in ascending order, that are not those of rows.

        Raises
        ------
        IndexError
            If an index is out of range.
        """
        least, most = used[[0, -1]].tolist()
        if least < 0 or most >= self.num_embeddings:
            raise IndexError(
                f"index out of range in self: got {least if least < 0 else most}; expected 0 to "
                f"{self.num_embeddings - 1}, the rows of this embedding."
            )

    def _rows_of(self, indices: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(indices, table, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)

    @property
    def _has_table(self) -> bool:
        """Whether inference looks up rows of a cached table, as weights of other layers are cached."""
        weight = self.generated
        return weight.caches and math.prod(weight.shape) * weight.dtype.itemsize <= _LARGEST_TABLE


def _unique(indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices in ascending order, and the place of each among them."""
    if indices.is_floating_point() or indices.dtype not in (torch.int32, torch.int64):
        raise LayoutError(f"Got indices of {indices.dtype}; expected int64 or int32. Convert them with .long().")
    return torch.unique(indices, return_inverse=True)


def _through(layer: ADTNEmbedding, products: Products, input: torch.Tensor) -> torch.Tensor:
    """Look up rows; their gradients are those of the layer."""
    if not input.numel():
        return layer.generated.now()[input.long()]
    if not is_traced():
        layer.check_range(_unique(input)[0])
    y, share = products[""](input.long()), torch.ones((), dtype=layer.generated.dtype, device=input.device)
    if layer.scale_grad_by_freq:
        place = _unique(input)[1]
        share = share / place.flatten().bincount()[place][..., None]
    if layer.padding_idx is not None:
        share = share * (input != layer.padding_idx)[..., None]
    return y if not share.ndim else y.detach() + share * (y - y.detach())


def _refusal(dense: nn.Embedding) -> str:
    """Return why a dense embedding has no generated form; empty if it has one."""
    if dense.max_norm is not None:
        return "max_norm changes its rows in place"
    return "its gradients are sparse" if dense.sparse else ""


_PASSAGE = Passage(through=_through, enters="lookup")
KINDS = (
    Kind(
        dense=(nn.Embedding,),
        generated=ADTNEmbedding,
        build=lambda dense, weights, bias: ADTNEmbedding.like(dense, weights[""]),
        refusal=_refusal,
        passage=lambda layer: _PASSAGE,
        adaptable=True,
        tied=lambda dense: True,
    ),
)
"""Embeddings."""
