"""A trained model with its data, for compression benchmarks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import adtn
import torch
from adtn.compression import model_of
from torch import nn

Batches = Sequence[tuple[torch.Tensor, torch.Tensor]]
Quality = Mapping[str, tuple[float, float]]
"""Measures with their standard errors over the test data, by name."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A trained model with its data.

    Parameters
    ----------
    name : str
    model : torch.nn.Module
        In evaluation mode.
    calibration : sequence of batches
        A part of the training data, for second moments and statistics.
    validation : sequence of batches
        Other data, to choose by.
    train : callable
        ``train(seed)`` yields batches for training, without end; seeds are at least -1.
    quality : callable
        ``quality(model)`` returns measures of quality on test data; the first is larger for better models.
    targets, exclude : tuple of str
        The layers that are compressed, see :class:`adtn.Config`.
    test : sequence of batches
        Test data with labels, where these are classes.
    batches, held : int
        The least number of batches for the automatic choice, and those by which it compares models.
    """

    name: str
    model: nn.Module
    calibration: Batches
    validation: Batches
    train: Callable[[int], Any]
    quality: Callable[[nn.Module], Quality]
    targets: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    test: Batches = ()
    batches: int = 24
    held: int = 8

    def fresh(self) -> Case:
        """Return the case with a copy of its model, which may be changed."""
        return replace(self, model=copy.deepcopy(self.model))

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights that are compressed, without tiny ones."""
        chosen, _ = adtn.Config(targets=self.targets, exclude=self.exclude).select(model_of(self.model, None).layers())
        return {name: tuple(shape) for layer in chosen for name, shape in layer.weights.items()}

    def sizes(self) -> tuple[int, int]:
        """Return the parameters of the model, and those of the layers that are compressed, with tiny ones."""
        config = adtn.Config(targets=self.targets, exclude=self.exclude, smallest=0)
        layers, _ = config.select(model_of(self.model, None).layers())
        entries = sum(math.prod(shape) for layer in layers for shape in layer.weights.values())
        return sum(p.numel() for p in self.model.parameters()), entries

    def file_bytes(self) -> int:
        """Return the size of a file with the model."""
        return len(model_of(self.model, None).content({}))


def of_proportion(part: float, n: int) -> float:
    """Return the standard error of a proportion among ``n`` independent samples."""
    return math.sqrt(part * (1.0 - part) / n)
