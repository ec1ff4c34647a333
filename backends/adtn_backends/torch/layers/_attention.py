"""Multi-head attention."""

from __future__ import annotations

from typing import Any

import torch
from adtn import Topology
from adtn.errors import LayoutError
from adtn.topology import RuleBase
from torch import nn
from torch.nn.utils import skip_init

from ._linear import ADTNLinear
from ._weight import GeneratedWeight, generator_of, is_frozen, is_traced, refuse_subclass, refuse_tracers


class ADTNMultiheadAttention(nn.MultiheadAttention):
    """:class:`torch.nn.MultiheadAttention` with generated in- and out-projections.

    Made by :meth:`from_attention`. The three in-projections of query, key and value are one weight
    ``(3 embed_dim, embed_dim)``.
    """

    generated: GeneratedWeight

    @classmethod
    def from_attention(
        cls,
        attention: nn.MultiheadAttention,
        topology: Topology,
        *,
        seed: int = 0,
        base: RuleBase | None = None,
        steps: int = 0,
        **options: Any,
    ) -> ADTNMultiheadAttention:
        """A layer in place of a dense one.

        Parameters
        ----------
        attention : torch.nn.MultiheadAttention
            With query, key and value of the same width.
        topology, seed, base
            See :class:`adtn.Generator`; both projections get their default layouts.
        steps : int
            Of a fit to each dense weight; without one only its spread is taken over.
        **options
            Of :func:`adtn.fit`.

        Raises
        ------
        LayoutError
            If keys and values have widths of their own, or for a subclass with a forward of its own.
        """
        refuse_subclass(attention, nn.MultiheadAttention)
        dense = attention.in_proj_weight
        if dense is None:
            raise LayoutError(
                "Got an attention whose keys and values have other widths than its queries; replace its linear parts."
            )
        weights = (
            GeneratedWeight(
                generator_of(weight, topology, None, seed=seed, base=base, steps=steps, options=options)
            ).to(dense.device, dense.dtype)
            for weight in (dense, attention.out_proj.weight)
        )
        return cls.of(attention, *weights)

    @classmethod
    def of(
        cls, attention: nn.MultiheadAttention, projections: GeneratedWeight, output: GeneratedWeight
    ) -> ADTNMultiheadAttention:
        """A layer with the biases and options of a dense one, and with given weights.

        Parameters
        ----------
        attention : torch.nn.MultiheadAttention
        projections : GeneratedWeight
            ``(3 embed_dim, embed_dim)``.
        output : GeneratedWeight
            ``(embed_dim, embed_dim)``.
        """
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        biases = ("in_proj_bias", "bias_k", "bias_v")
        own = {k: v for k, v in vars(attention).items() if not k.startswith("_") or k == "_qkv_same_embed_dim"}
        vars(made).update({k: v for k, v in own.items() if k not in biases})
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            made.register_parameter(name, None)
        for name in biases:
            x = getattr(attention, name)
            made.register_parameter(name, None if x is None else nn.Parameter(x.detach().clone(), not is_frozen(x)))
        made.generated = projections
        made.out_proj = ADTNLinear(output, attention.out_proj.bias)  # type: ignore[assignment]
        return made.train(attention.training)

    @property
    def in_proj_weight(self) -> torch.Tensor:  # type: ignore[override]
        """The in-projections, ``(3 embed_dim, embed_dim)``, differentiable."""
        return self.generated.own()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See :class:`torch.nn.MultiheadAttention`."""
        if is_traced():
            return super().forward(*args, **kwargs)
        refuse_tracers(self, *args)
        projection: Any = self.out_proj
        with self.generated.once(), projection.generated.once():  # it looks at its weights more than once
            return super().forward(*args, **kwargs)

    def to_dense(self) -> nn.MultiheadAttention:
        """An ordinary layer with the weights as they are now."""
        dense: Any = skip_init(
            nn.MultiheadAttention, self.embed_dim, self.num_heads, self.dropout, self.in_proj_bias is not None,
            self.bias_k is not None, self.add_zero_attn, batch_first=self.batch_first, device=self.generated.device,
            dtype=self.generated.dtype,
        )  # fmt: skip
        with torch.no_grad():
            dense.in_proj_weight.copy_(self.in_proj_weight)
            dense.out_proj.weight.copy_(self.out_proj.weight)
            pairs = [(getattr(dense, name), getattr(self, name)) for name in ("in_proj_bias", "bias_k", "bias_v")]
            for to, own in [*pairs, (dense.out_proj.bias, self.out_proj.bias)]:
                if own is not None:
                    to.copy_(own)
                    to.requires_grad_(own.requires_grad)
            output: Any = self.out_proj
            for to, weight in ((dense.in_proj_weight, self.generated), (dense.out_proj.weight, output.generated)):
                to.requires_grad_(any(x.requires_grad for x in weight.arrays().values()))
        return dense.train(self.training)
