"""Other libraries as baselines: integers of torchao, and unweighted decompositions of TensorLy.

``pip install --no-deps torchao tensorly``. Weights are dequantised or reconstructed, so that the same model measures
all. peft is not among them: it adds trained adapters to a model, and has no step that makes one smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from case import Case
from torch import nn

Weights = dict[str, tuple[np.ndarray, int]]
"""Weights that approximate those of the model, with the bytes that they take in their format."""


@dataclass(frozen=True, kw_only=True)
class TorchAO:
    """The weight-only integers of torchao, symmetric; convolutions are matrices, as it rounds linear layers only.

    Scales are counted as float16. Zero points of a symmetric format are zero and not counted.

    Parameters
    ----------
    bits : int
    group : int or None
        The columns of a scale; by default, a whole row.
    is_hqq : bool
        Whether scales are chosen by half-quadratic quantisation.
    """

    bits: int
    group: int | None
    is_hqq: bool = False

    def weights(self, case: Case, ratio: float | None = None) -> Weights:
        """Round and dequantise all weights."""
        return {name: self._rounded(weight) for name, weight in _weights_of(case).items()}

    def _rounded(self, weight: np.ndarray) -> tuple[np.ndarray, int]:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerGroup
        from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
            IntxChooseQParamsAlgorithm,
        )

        rows = torch.from_numpy(weight.reshape(len(weight), -1)).float()
        group = self.group or rows.shape[1]
        padded = nn.functional.pad(rows, (0, -rows.shape[1] % group))  # groups of torchao are whole
        layer = nn.Linear(padded.shape[1], padded.shape[0], bias=False)
        layer.weight = nn.Parameter(padded)
        if self.bits == 8:
            config = Int8WeightOnlyConfig()
        else:
            method = IntxChooseQParamsAlgorithm
            config = IntxWeightOnlyConfig(
                weight_dtype=getattr(torch, f"int{self.bits}"),
                granularity=PerGroup(group),
                intx_choose_qparams_algorithm=method.HQQ_SCALE_ONLY if self.is_hqq else method.AFFINE,
            )
        model = nn.Sequential(layer)
        quantize_(model, config)
        coded: Any = model[0].weight
        found = coded.dequantize().detach()[:, : rows.shape[1]].double().numpy()
        scales = len(rows) * padded.shape[1] // group
        return found.reshape(weight.shape), math.ceil(rows.numel() * self.bits / 8) + 2 * scales


@dataclass(frozen=True, kw_only=True)
class TensorLy:
    """A decomposition of TensorLy with the same ratio in every layer, as it has no choice of ranks.

    Parameters
    ----------
    form : {"Tucker-2", "TT"}
        The form of convolutions; matrices have a singular value decomposition.
    """

    form: Literal["Tucker-2", "TT"]

    def fits(self, case: Case, _: float) -> bool:
        """Return whether the form is not another one for this model: both are the same for matrices."""
        return self.form == "TT" or any(len(shape) > 2 for shape in case.weights().values())

    def weights(self, case: Case, ratio: float | None) -> Weights:
        """Decompose and reconstruct all weights; those that cannot be as small have ranks of 1."""
        assert ratio is not None, "its size is chosen"
        return {name: self._within(weight, int(weight.size / ratio)) for name, weight in _weights_of(case).items()}

    def _within(self, weight: np.ndarray, most: int) -> tuple[np.ndarray, int]:
        import tensorly
        from tensorly.decomposition import partial_tucker, tensor_train

        if weight.ndim == 2 or self.form == "TT":
            shape = weight.shape
            sizes = {r: _train_params(shape, r) for r in range(1, max(shape) + 1)}
            ranks = _train_ranks(shape, max((r for r, size in sizes.items() if size <= most), default=1))
            train = tensor_train(weight, list(ranks))
            return tensorly.tt_to_tensor(train), 4 * sum(core.size for core in train)
        outer, inner, *window = weight.shape
        pairs = [(max(round(s * outer), 1), max(round(s * inner), 1)) for s in np.linspace(0.02, 1.0, 200)]
        fitting = [(a, b) for a, b in pairs if a * outer + b * inner + a * b * math.prod(window) <= most]
        (core, factors), _ = partial_tucker(weight, rank=list(fitting[-1] if fitting else (1, 1)), modes=[0, 1])
        size = core.size + sum(factor.size for factor in factors)
        return tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1]), 4 * size


def _train_ranks(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    inner = (min(rank, math.prod(shape[:k]), math.prod(shape[k:])) for k in range(1, len(shape)))
    return 1, *inner, 1


def _train_params(shape: tuple[int, ...], rank: int) -> int:
    ranks = _train_ranks(shape, rank)
    return sum(a * n * b for a, n, b in zip(ranks, shape, ranks[1:], strict=False))


def _weights_of(case: Case) -> dict[str, np.ndarray]:
    from adtn.compression import model_of

    model = model_of(case.model, None)
    return {name: model.weight(name) for name in case.weights()}


TORCHAO: Mapping[str, TorchAO] = {
    "torchao int8": TorchAO(bits=8, group=None),
    "torchao int4/32": TorchAO(bits=4, group=32),
    "torchao int4/128": TorchAO(bits=4, group=128),
    "torchao HQQ int4/32": TorchAO(bits=4, group=32, is_hqq=True),
    "torchao HQQ int3/32": TorchAO(bits=3, group=32, is_hqq=True),
    "torchao HQQ int2/32": TorchAO(bits=2, group=32, is_hqq=True),
}
TENSORLY: Mapping[str, TensorLy] = {
    "TensorLy Tucker-2": TensorLy(form="Tucker-2"),
    "TensorLy TT": TensorLy(form="TT"),
}
