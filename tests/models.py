"""Small models and data that tests of whole models share."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 32),
        nn.ReLU(),
        nn.Linear(32, 3),
    )


def batches(n: int = 3):
    rng = torch.Generator().manual_seed(1)
    x = [torch.randn(8, 4, 4, 4, generator=rng) for _ in range(n)]
    return [(b, (b.mean((1, 2, 3)) > 0).long() + (b[:, 0].mean((1, 2)) > 0).long()) for b in x]


class Language(nn.Module):
    """A language model with a tied embedding, attention, and a recurrent layer without a generated form."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(32, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.recurrent = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids):
        x = self.embed(input_ids)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.recurrent(x)[0])


def texts():
    rng = torch.Generator().manual_seed(0)
    found = [torch.randint(0, 32, (4, 6), generator=rng) for _ in range(2)]
    return [{"input_ids": i, "labels": i} for i in found]


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(model, state) -> bool:
    now = model.state_dict()
    return set(now) == set(state) and all(torch.equal(now[k], v) for k, v in state.items())
