"""Losses that are expected from gradients, and the passes that begin where nothing changes any more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from adtn.compression import divergence
from torch import nn

from adtn_backends.torch._model import TorchModel


class Tokens(nn.Module):
    """A residual network that is applied to every position."""

    def __init__(self, width: int = 12, blocks: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(blocks))
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("name", ["blocks.0.0", "blocks.4.0", "head"])
def test_a_small_change_costs_what_gradients_expect(name: str, classes: bool) -> None:
    """Independent rows: the prediction of the second moments is the second-order loss, up to the random labels."""
    torch.manual_seed(0)
    model = Tokens()
    x = torch.randn(4000, 12)
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(1000)]
    adapter = TorchModel(model, None)
    moments = adapter.second_moments([name], batches, samples=4000)
    curvature = adapter.output_moments([name], batches, classes=classes)[name]
    change = 1e-2 * np.random.default_rng(1).standard_normal(adapter.weight(name).shape)
    expected = float(np.vdot(curvature @ change, change @ moments[name]))
    dense: Any = adapter.outputs(batches)
    with torch.no_grad():
        model.get_submodule(name).weight += torch.as_tensor(change, dtype=torch.float32)
    found = divergence(dense, adapter.outputs(batches) or [], classes=classes)
    assert expected == pytest.approx(found, rel=0.3)
