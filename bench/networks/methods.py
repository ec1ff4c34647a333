"""The replacements of a layer: generators and the usual factorisations, each as large as a budget allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import adtn
import torch
from adtn.compression import largest_within
from adtn.optim import has_decomposition
from torch import nn

from adtn_backends.torch.layers import ADTNConv2d, ADTNLinear

_COUNTED = 1000  # parameters up to which the active ones are counted, as ranks of large cores take minutes


class LowRank(nn.Module):
    """Two factors that replace a matrix, or a convolution's ``(out, in * kh * kw)``, from a truncated SVD."""

    def __init__(self, dense: Any, rank: int) -> None:
        super().__init__()
        weight = dense.weight.detach()
        # randomised (Halko, Martinsson, Tropp 2011, arXiv:0909.4061), as only a few of up to 4,096 vectors are needed
        u, s, v = torch.svd_lowrank(weight.flatten(1).double(), min(rank + 16, *weight.flatten(1).shape), niter=8)
        root = s[:rank].sqrt()
        self.left = nn.Parameter((u[:, :rank] * root).to(weight.dtype))
        self.right = nn.Parameter((root * v[:, :rank]).T.contiguous().to(weight.dtype))
        self.bias = dense.bias
        self.like = [dense]  # in a list, so that it is not a submodule and not trained

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer like the dense one."""
        dense: Any = self.like[0]
        if isinstance(dense, nn.Conv2d):
            right = self.right.reshape(-1, *dense.weight.shape[1:])
            x = nn.functional.conv2d(x, right, None, dense.stride, dense.padding, dense.dilation)
            return nn.functional.conv2d(x, self.left[:, :, None, None], self.bias)
        return nn.functional.linear(nn.functional.linear(x, self.right), self.left, self.bias)


class Factorised(nn.Module):
    """The Tucker form of tensorly-torch, reconstructed for every batch."""

    def __init__(self, dense: Any, legs: tuple[int, ...], topology: Any, seed: int) -> None:
        import tltorch

        super().__init__()
        torch.manual_seed(seed)
        rank = tuple(min(topology.bond, n) for n in legs)
        self.tensor = tltorch.FactorizedTensor.new(legs, rank=rank, factorization="Tucker")
        self.tensor.normal_(0.0, float(dense.weight.detach().std()))
        self.bias = dense.bias
        self.like = [dense]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer like the dense one."""
        return _applied(self.like[0], x, self.tensor.to_tensor().reshape(self.like[0].weight.shape), self.bias)


class Frozen(nn.Module):
    """A frozen weight with one trained factor."""

    def __init__(self, dense: nn.Module, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.factor = nn.Parameter(torch.ones(()))
        self.bias = dense.bias
        self.like = [dense]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer like the dense one."""
        return _applied(self.like[0], x, self.weight * self.factor, self.bias)


def sorted_units(tail: nn.Sequential, layer: str) -> None:
    """Sort the hidden units after a linear layer, so that units with similar weights are neighbours.

    The order is that of the second eigenvector of the Laplacian of similarities (M. Fiedler 1973). The columns of the
    next layer are sorted in the same way, so the network computes the same function.
    """
    named: dict[str, Any] = dict(tail.named_children())
    names = list(named)
    first = named[layer]
    later = next(named[n] for n in names[names.index(layer) + 1 :] if isinstance(named[n], nn.Linear))
    rows = nn.functional.normalize(first.weight.detach().double(), dim=1)
    near = (rows @ rows.T).clamp(min=0.0)
    _, vectors = torch.linalg.eigh(torch.diag(near.sum(1)) - near)
    order = vectors[:, 1].argsort()
    with torch.no_grad():
        first.weight.copy_(first.weight[order])
        first.bias.copy_(first.bias[order])
        later.weight.copy_(later.weight[:, order])


def _applied(dense: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Apply a dense layer with another weight."""
    if isinstance(dense, nn.Conv2d):
        return nn.functional.conv2d(x, weight, bias, dense.stride, dense.padding, dense.dilation)
    return nn.functional.linear(x, weight, bias)


def replacement(dense: Any, method: Mapping[str, Any], most: int | None, seed: int) -> tuple[nn.Module, int, int]:
    """Make a module that replaces ``dense``; return it with the counts of all and of active parameters.

    A method that cannot be as small as ``most`` has its smallest size.
    """
    shape = tuple(dense.weight.shape)
    kind = method.get("kind", "generator")
    if kind == "dense":
        return dense, dense.weight.numel(), dense.weight.numel()
    if kind == "svd":
        one = shape[0] + math.prod(shape[1:])
        rank = min(max(1, (most or one) // one), min(shape[0], math.prod(shape[1:])))
        return LowRank(dense, rank), rank * one, rank * one
    factors = method.get("factors", {}).get("x".join(map(str, shape)))
    options = ("topology",) if factors else ("topology", "leg", "order")
    config = adtn.Config.from_dict({k: v for k, v in method.items() if k in options})
    topology = config.topology
    assert topology is not None, "every generator of the bench names one"
    if factors:
        layout = adtn.Layout.from_factors(shape, factors, method.get("order", "interleaved"), max_padding=4.0)
    else:
        layout = config.layout(shape)
    grows = topology.grows
    if most is not None and grows is not None and grows not in method["topology"]:
        topology = largest_within(topology, layout, most - bool(method.get("base"))) or topology.grown(1)
    if kind == "tltorch":
        layer = Factorised(dense, tuple(f for fs in layout.factors for f in fs), topology, seed)
        size = sum(p.numel() for p in layer.tensor.parameters())
        return layer, size, size
    bases = {False: None, "seeded": adtn.SeededBase(seed), "identity": adtn.IdentityBase()}
    base = bases[method.get("base", False)]
    weight = dense.weight.detach().cpu().double().numpy()
    spread = float(weight.std()) * method.get("spread", 1.0)
    generator = adtn.Generator(shape, topology, layout=layout, seed=seed, scale=spread, base=base)
    if method.get("warm"):
        start = "decomposition" if has_decomposition(generator) else "generator"
        fitted = adtn.fit(generator, weight, optimizer="lbfgs", steps=method["warm"], start=start, progress=False)
        generator = fitted.generator
    if kind == "frozen":
        return Frozen(dense, generator.weight("torch:cpu", "float32")), 1, 1
    bias = dense.bias if dense.bias is not None else False
    if isinstance(dense, nn.Conv2d):
        geometry = {k: getattr(dense, k) for k in ("stride", "padding", "dilation", "groups")}
        return ADTNConv2d(generator, bias, **geometry), generator.num_params, _active(generator)
    return ADTNLinear(generator, bias), generator.num_params, _active(generator)


def _active(generator: adtn.Generator) -> int:
    """Return the number of active parameters, or of all parameters for large generators."""
    return generator.num_active_params if generator.num_params <= _COUNTED else generator.num_params
