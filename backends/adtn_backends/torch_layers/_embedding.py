"""Embeddings."""

from __future__ import annotations

from typing import Any

import torch
from adtn import Generator, Layout, Topology
from adtn._checks import checked
from adtn._errors import LayoutError
from torch import nn

from ._weight import Base, GeneratedWeight, as_weight, generator_of, is_traced

_FEW = 4  # up to a quarter of all rows, only those that are asked for are made


class ADTNEmbedding(nn.Module):
    """Rows of a generated table; takes the place of :class:`torch.nn.Embedding`.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        Of the table, ``(num_embeddings, embedding_dim)``. Given to an :class:`ADTNLinear` as well, the two are tied.
    padding_idx : int, optional
        Its row passes no gradient on.

    Raises
    ------
    LayoutError
        If the weight is not a matrix.

    Examples
    --------
    >>> import adtn, torch
    >>> table = ADTNEmbedding(adtn.Generator((100, 16), adtn.TTN(bond=2)))
    >>> table(torch.tensor([[1, 2, 99]])).shape
    torch.Size([1, 3, 16])
    """

    @checked(LayoutError)
    def __init__(self, weight: Generator | GeneratedWeight, padding_idx: int | None = None) -> None:
        super().__init__()
        self.generated = as_weight(weight, 2, "an embedding (num_embeddings, embedding_dim)")
        self.num_embeddings, self.embedding_dim = self.generated.shape
        self.padding_idx = padding_idx

    @classmethod
    def from_embedding(
        cls,
        embedding: nn.Embedding,
        topology: Topology,
        layout: Layout | None = None,
        *,
        seed: int = 0,
        base: Base = None,
        steps: int = 0,
        **options: Any,
    ) -> ADTNEmbedding:
        """A table in place of a dense one; parameters as of :meth:`ADTNLinear.from_linear`."""
        dense = embedding.weight
        found = generator_of(dense, topology, layout, seed=seed, base=base, steps=steps, options=options)
        weight = GeneratedWeight(found).to(dense.device, dense.dtype)
        return cls(weight, embedding.padding_idx).train(embedding.training)

    @property
    def weight(self) -> torch.Tensor:
        """The table, differentiable."""
        return self.generated()

    def to_dense(self) -> nn.Embedding:
        """An ordinary embedding with the table as it is now."""
        dense = nn.Embedding.from_pretrained(self.weight.detach(), freeze=False, padding_idx=self.padding_idx)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """Sizes."""
        padding = f", padding_idx={self.padding_idx}" if self.padding_idx is not None else ""
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """``(...)`` of integers to ``(..., embedding_dim)``."""
        if is_traced() or self.generated.made:
            return nn.functional.embedding(indices, self.weight, self.padding_idx)
        wanted, place = torch.unique(indices, return_inverse=True)
        if _FEW * wanted.numel() > self.num_embeddings or not wanted.numel():
            return nn.functional.embedding(indices, self.generated.now(), self.padding_idx)
        rows = self.generated.rows(wanted)
        if self.padding_idx is not None:
            rows = torch.where((wanted == self.padding_idx)[:, None], rows.detach(), rows)
        return nn.functional.embedding(place, rows)
