"""Multi-head attention with generated projections."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from adtn import Topology
from adtn.errors import LayoutError
from adtn.topology import RuleBase
from torch import nn
from torch.nn.utils import skip_init

from ...shared._fitted import fitted
from ...shared._passage import Passage, Products
from ._calls import is_traced, refuse_tracers
from ._kind import Kind, Part, Weights
from ._linear import ADTNLinear
from ._parts import fitted_weight, is_frozen, refuse_subclass
from ._slice import Weight

_BIASES = ("in_proj_bias", "bias_k", "bias_v")
_PARTS = {
    "in_proj": Part(parameter="in_proj_weight"),
    "out_proj": Part(parameter="out_proj.weight", generated="out_proj.generated"),
}


class ADTNMultiheadAttention(nn.MultiheadAttention):
    """A :class:`torch.nn.MultiheadAttention` with generated in- and out-projections.

    It is made by :meth:`from_attention`. The in-projections of query, key and value are one weight of shape
    ``(3 embed_dim, embed_dim)``.
    """

    generated: Weight

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
        """Make a generated layer from a dense one.

        Parameters
        ----------
        attention : torch.nn.MultiheadAttention
            The dense layer, whose queries, keys and values have the same width.
        topology, seed, base
            See :class:`adtn.Generator`; both projections have their default layouts.
        steps : int
            The steps of a fit to each dense weight; with none, only its standard deviation is matched.
        **options
            Options of :func:`adtn.fit`.

        Raises
        ------
        LayoutError
            If keys and values differ in width from queries, or the layer is a subclass that overrides ``forward``.
        """
        refuse_subclass(attention, nn.MultiheadAttention)
        if reason := _refusal(attention):
            raise LayoutError(f"Got an attention whose {reason}; replace the linear layers inside it.")
        fit = partial(fitted, topology=topology, layout=None, seed=seed, base=base, steps=steps, options=options)
        return cls.of(
            attention, fitted_weight(attention.in_proj_weight, fit), fitted_weight(attention.out_proj.weight, fit)
        )

    @classmethod
    def of(cls, attention: nn.MultiheadAttention, projections: Weight, output: Weight) -> ADTNMultiheadAttention:
        """Make a layer with given weights, and with the biases and options of a dense one.

        Parameters
        ----------
        attention : torch.nn.MultiheadAttention
            The dense layer.
        projections : GeneratedWeight
            The in-projections, ``(3 embed_dim, embed_dim)``.
        output : GeneratedWeight
            The out-projection, ``(embed_dim, embed_dim)``.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        attributes = {k: v for k, v in vars(attention).items() if not k.startswith("_") or k == "_qkv_same_embed_dim"}
        vars(layer).update({k: v for k, v in attributes.items() if k not in _BIASES})
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            layer.register_parameter(name, None)
        for name in _BIASES:
            x = getattr(attention, name)
            layer.register_parameter(name, None if x is None else nn.Parameter(x.detach().clone(), not is_frozen(x)))
        layer.generated = projections
        layer.out_proj = ADTNLinear(output, attention.out_proj.bias)  # type: ignore[assignment]
        return layer.train(attention.training)

    @property
    def in_proj_weight(self) -> torch.Tensor:  # type: ignore[override]
        """The in-projections, ``(3 embed_dim, embed_dim)``, differentiable."""
        return self.generated.own()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Apply attention, see :class:`torch.nn.MultiheadAttention`."""
        if is_traced():
            return super().forward(*args, **kwargs)
        refuse_tracers(self, *args)
        projection: Any = self.out_proj
        with self.generated.once(), projection.generated.once():  # forward reads its weights more than once
            return super().forward(*args, **kwargs)

    def to_dense(self) -> nn.MultiheadAttention:
        """Make an ordinary layer with the present weights."""
        dense: Any = skip_init(
            nn.MultiheadAttention,
            self.embed_dim,
            self.num_heads,
            self.dropout,
            self.in_proj_bias is not None,
            self.bias_k is not None,
            self.add_zero_attn,
            batch_first=self.batch_first,
            device=self.generated.device,
            dtype=self.generated.dtype,
        )
        with torch.no_grad():
            dense.in_proj_weight.copy_(self.in_proj_weight)
            dense.out_proj.weight.copy_(self.out_proj.weight)
            pairs = [(getattr(dense, name), getattr(self, name)) for name in _BIASES]
            for to, bias in [*pairs, (dense.out_proj.bias, self.out_proj.bias)]:
                if bias is not None:
                    to.copy_(bias)
                    to.requires_grad_(bias.requires_grad)
            output: Any = self.out_proj
            for to, weight in ((dense.in_proj_weight, self.generated), (dense.out_proj.weight, output.generated)):
                to.requires_grad_(weight.trains)
        return dense.train(self.training)


def _through(
    layer: ADTNMultiheadAttention,
    products: Products,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **options: Any,
) -> Any:
    """Apply an attention whose projections are identities between the projections."""
    plain: Any = skip_init(
        nn.MultiheadAttention,
        layer.embed_dim,
        layer.num_heads,
        layer.dropout,
        bias=False,
        add_bias_kv=layer.bias_k is not None,
        add_zero_attn=layer.add_zero_attn,
        batch_first=layer.batch_first,
        device=layer.generated.device,
        dtype=layer.generated.dtype,
    )
    identity = torch.eye(layer.embed_dim, device=layer.generated.device, dtype=layer.generated.dtype)
    plain.in_proj_weight = nn.Parameter(torch.cat([identity] * 3), False)
    plain.out_proj.weight = nn.Parameter(identity, False)
    if layer.bias_k is not None:
        plain.bias_k, plain.bias_v = layer.bias_k, layer.bias_v
    made: dict[int, tuple[torch.Tensor, ...]] = {}
    for x in (query, key, value):  # usually the same
        if id(x) not in made:
            y = products["in_proj"](x)
            made[id(x)] = (y if layer.in_proj_bias is None else y + layer.in_proj_bias).chunk(3, -1)
    q, k, v = (made[id(x)][n] for n, x in enumerate((query, key, value)))
    output: Any = layer.out_proj
    y, weights = plain.train(layer.training)(q, k, v, *args, **options)
    y = products["out_proj"](y)
    return y if output.bias is None else y + output.bias, weights


def is_attention(module: nn.Module) -> bool:
    """Return whether a module is an attention with all its projections, dense or generated."""
    return isinstance(module, nn.MultiheadAttention)


def _build(dense: Any, weights: Weights, bias: bool) -> ADTNMultiheadAttention:
    return ADTNMultiheadAttention.of(dense, weights["in_proj"], weights["out_proj"])


def _refusal(dense: nn.MultiheadAttention) -> str:
    return "keys and values have other widths than queries" if dense.in_proj_weight is None else ""


_PASSAGE = Passage(through=_through, weights={part: own.generated for part, own in _PARTS.items()})
ATTENTION = Kind(
    dense=(nn.MultiheadAttention,),
    generated=ADTNMultiheadAttention,
    build=_build,
    parts=lambda dense: _PARTS,
    biases=(*_BIASES, "out_proj.bias"),
    refusal=_refusal,
    passage=lambda layer: _PASSAGE,
    whole=True,
)
SUBCLASS = Kind(
    matches=lambda module: isinstance(module, nn.MultiheadAttention),
    build=_build,
    parts=lambda dense: {},
    refusal=lambda dense: f"no generated form of {type(dense).__name__}",
)
KINDS = (ATTENTION, SUBCLASS)
"""Attention as a whole; in subclasses, only the linear layers inside can be replaced."""
