"""The permutations that a model takes over: orders of hidden units, heads and channels cost nothing there.

Every function changes weights in place so that outputs change by rounding only. Nothing is changed if a shape does not
fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from adtn import Permutation
from adtn.errors import LayoutError
from torch import nn

FIXED_ROTARY = ("default", "linear", "llama3", "yarn")
Gather = tuple[nn.Module, str, int, torch.Tensor]


def absorb_hidden(first: nn.Module | Sequence[nn.Module], second: nn.Module, order: Permutation) -> None:
    """Permute the hidden units between linear layers with elementwise functions between them.

    Parameters
    ----------
    first : torch.nn.Linear, or a sequence of them
        The layers whose outputs are the hidden units: rows of their weights and biases are permuted. Those of a gated
        layer are ``[mlp.gate_proj, mlp.up_proj]``.
    second : torch.nn.Linear
        The layer whose inputs they are: its columns are permuted.
    order : Permutation
        Hidden unit ``order.array[i]`` comes to place ``i``.

    Raises
    ------
    LayoutError
        If a shape does not fit; nothing is changed then.
    """
    index = torch.tensor(order.array)
    layers = [first] if isinstance(first, nn.Module) else list(first)
    _apply([*(one for layer in layers for one in _rows(layer, index)), (second, "weight", 1, index)])


def absorb_values(attention: nn.Module, orders: Permutation | Sequence[Permutation]) -> None:
    """Permute the channels of values inside each head, with the columns of the output projection.

    Parameters
    ----------
    attention : torch.nn.Module
        Attention as in Llama: ``v_proj``, ``o_proj``, ``head_dim`` and ``num_key_value_groups``.
    orders : Permutation, or a sequence of them
        The order of ``head_dim`` channels, for all key-value heads or one per head.

    Raises
    ------
    LayoutError
        If the attention is of another kind, or an order does not fit; nothing is changed then.
    """
    d, groups, heads = _heads(attention)
    given = [orders] * heads if isinstance(orders, Permutation) else list(orders)
    if len(given) != heads or any(len(order) != d for order in given):
        raise LayoutError(
            f"Got {len(given)} orders of {[len(order) for order in given]} channels; expected one for all, or one for "
            f"each of {heads} key-value heads, of {d} channels."
        )
    of_heads = [torch.tensor(order.array) + k * d for k, order in enumerate(given)]
    # every key-value head serves a group of query heads, and the columns of these follow it
    columns = [torch.tensor(order.array) + (k * groups + g) * d for k, order in enumerate(given) for g in range(groups)]
    projection: Any = attention
    _apply([*_rows(projection.v_proj, torch.cat(of_heads)), (projection.o_proj, "weight", 1, torch.cat(columns))])


def absorb_heads(attention: nn.Module, order: Permutation) -> None:
    """Permute the key-value heads of an attention, together with the query heads that they serve.

    Parameters
    ----------
    attention : torch.nn.Module
        Attention as in Llama.
    order : Permutation
        The order of the key-value heads.

    Raises
    ------
    LayoutError
        If the attention is of another kind, or the order does not fit; nothing is changed then.
    """
    d, groups, heads = _heads(attention)
    if len(order) != heads:
        raise LayoutError(f"Got an order of {len(order)} heads; expected one of the {heads} key-value heads.")
    index = torch.tensor(order.array)
    of_keys, of_queries = _blocks(index, d), _blocks(index, groups * d)
    part: Any = attention
    _apply(
        [
            *_rows(part.q_proj, of_queries),
            *_rows(part.k_proj, of_keys),
            *_rows(part.v_proj, of_keys),
            (part.o_proj, "weight", 1, of_queries),
        ]
    )


def absorb_rotary(model: nn.Module, order: Permutation) -> None:
    """Permute the rotary pairs of queries and keys, in all heads of all layers, with the frequencies of the model.

    The frequencies are a buffer that checkpoints do not hold: a model that is saved and loaded needs this call on a
    model with natural weights instead.

    Parameters
    ----------
    model : torch.nn.Module
        A model as Llama, whose channels ``j`` and ``j + head_dim / 2`` of a head are a pair.
    order : Permutation
        The order of the ``head_dim / 2`` pairs.

    Raises
    ------
    LayoutError
        If the model is of another kind, its frequencies change with the length of the input, or the order does not fit;
        nothing is changed then.
    """
    body = _body(model)
    rotary = getattr(body, "rotary_emb", None)
    if rotary is None or getattr(rotary, "rope_type", "") not in FIXED_ROTARY:
        kind = getattr(rotary, "rope_type", "none")
        raise LayoutError(f"Got rotary positions of type {kind!r}; expected one of {', '.join(FIXED_ROTARY)}.")
    index = torch.tensor(order.array)
    changes: list[Gather] = [(rotary, name, 0, index) for name in ("inv_freq", "original_inv_freq")]
    for layer in body.layers:
        d, groups, heads = _heads(layer.self_attn)
        channels = torch.cat([index, index + d // 2])
        if len(channels) != d:
            raise LayoutError(f"Got an order of {len(order)} pairs; expected one of the {d // 2} pairs of a head.")
        for name, n in (("q", groups * heads), ("k", heads)):
            rows = torch.cat([channels + d * k for k in range(n)])
            changes += _rows(getattr(layer.self_attn, f"{name}_proj"), rows)
            norm = getattr(layer.self_attn, f"{name}_norm", None)
            changes += [] if norm is None else _rows(norm, channels)
    _apply(changes)


def absorb_residual(model: nn.Module, order: Permutation) -> None:
    """Permute the residual stream: one order for the whole model.

    Parameters
    ----------
    model : torch.nn.Module
        A model as Llama: embedding, layers with ``self_attn`` and ``mlp``, normalisations by the root mean square, and
        possibly ``lm_head``, whose weight may be that of the embedding.
    order : Permutation
        The order of the ``hidden_size`` channels.

    Raises
    ------
    LayoutError
        If the model has parameters that are not known, or the order does not fit; nothing is changed then.
    """
    body = _body(model)
    index = torch.tensor(order.array)
    changes: list[Gather] = [(body.embed_tokens, "weight", 1, index), *_rows(body.norm, index)]
    head = getattr(model, "lm_head", None)
    changes += [] if head is None else [(head, "weight", 1, index)]
    inner: set[int] = set()  # what is in another order
    for layer in body.layers:
        attention, mlp = layer.self_attn, layer.mlp
        into = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
        changes += [(one, "weight", 1, index) for one in into]
        for one in (attention.o_proj, mlp.down_proj, layer.input_layernorm, layer.post_attention_layernorm):
            changes += _rows(one, index)
        biases = [getattr(one, "bias", None) for one in into]
        norms = [getattr(getattr(attention, name, None), "weight", None) for name in ("q_norm", "k_norm")]
        inner |= {id(x) for x in (*biases, *norms, getattr(head, "bias", None)) if x is not None}
    known = {id(getattr(module, name)) for module, name, _, _ in changes} | inner
    if unknown := [name for name, x in model.named_parameters() if id(x) not in known]:
        raise LayoutError(f"Got a model with {', '.join(unknown[:5])}, whose order is not known; expected a Llama.")
    _apply(changes)


def _body(model: nn.Module) -> Any:
    body = getattr(model, "model", model)
    missing = [name for name in ("embed_tokens", "layers", "norm") if not hasattr(body, name)]
    if missing:
        raise LayoutError(f"Got a {type(model).__name__} without {', '.join(missing)}; expected one as Llama.")
    return body


def _heads(attention: Any) -> tuple[int, int, int]:
    """Return the channels of a head, the query heads per key-value head, and the number of the latter."""
    wanted = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "num_key_value_groups")
    if missing := [name for name in wanted if not hasattr(attention, name)]:
        raise LayoutError(f"Got a {type(attention).__name__} without {', '.join(missing)}; expected that of a Llama.")
    d = attention.head_dim
    return d, attention.num_key_value_groups, attention.k_proj.weight.shape[0] // d


def _blocks(index: torch.Tensor, size: int) -> torch.Tensor:
    """Return the order of the entries of blocks of which the order is given."""
    return (index[:, None] * size + torch.arange(size)).reshape(-1)


def _rows(layer: nn.Module, index: torch.Tensor) -> list[Gather]:
    """List what permutes the outputs of a layer."""
    return [(layer, name, 0, index) for name in ("weight", "bias") if getattr(layer, name, None) is not None]


@torch.no_grad()
def _apply(changes: Sequence[Gather]) -> None:
    """Check all changes, then make them; a tensor that two modules share is permuted once."""
    for module, name, axis, index in changes:
        x = getattr(module, name, None)
        if not isinstance(x, torch.Tensor) or x.ndim <= axis or x.shape[axis] != len(index):
            got = "none" if x is None else f"one of shape {tuple(getattr(x, 'shape', ()))}"
            raise LayoutError(
                f"Got an order of {len(index)} for axis {axis} of the {name} of a {type(module).__name__}, which has "
                f"{got}; expected equal sizes."
            )
    done: set[tuple[int, int]] = set()
    for module, name, axis, index in changes:
        x = getattr(module, name)
        if (id(x), axis) not in done:
            done.add((id(x), axis))
            x.copy_(x.index_select(axis, index.to(x.device)))
