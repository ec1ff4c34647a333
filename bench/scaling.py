"""Test loss against parameters of networks that are trained from scratch: ``python bench/scaling.py mlp transformer``.

Multilayer perceptrons on MNIST and small transformers on the characters of Shakespeare have hidden layers that are
dense, low-rank pairs, MPO, or trees (TTN), with bonds of 2 to 64, and several widths and depths. All train for the same
number of steps on the same batches with Adam and a cosine schedule; the rate is chosen per kind of layer at a middle
size, on data that are neither trained nor tested on. Needs ``ADTN_DATA``; writes ``bench/results/scaling.json`` row by
row, and rows that are there are not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import torch
from adtn.bench import machine
from adtn.demo._data import load_images
from torch import nn

from adtn_backends.torch import ADTNLinear

OUT = Path(__file__).parent / "results" / "scaling.json"
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
FORMS: Mapping[str, Callable[[int], adtn.Topology]] = {
    "low rank": lambda bond: adtn.LowRank(bond=bond),
    "MPO": lambda bond: adtn.MPO(bond=bond),
    "TTN": lambda bond: adtn.TTN(bond=bond, activation=None),
    "TTN, SiLU": lambda bond: adtn.TTN(bond=bond),
}
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Size:
    """The layers of a network: their form, its bond (0 if dense), and the width and depth of the network."""

    form: str
    bond: int
    width: int
    depth: int = 2


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, a kind of network and the sizes that are tried; the middle size decides about the rates."""

    network: Callable[[Size, int], nn.Module]
    batches: Callable[[int, int], Iterator[Batch]]
    held: Callable[[], Sequence[Batch]]
    test: Callable[[], Sequence[Batch]]
    steps: int
    width: int
    bonds: Mapping[str, Sequence[int]]
    widths: Sequence[int]

    def sizes(self) -> list[Size]:
        """List all sizes."""
        found = [Size(form="dense", bond=0, width=width) for width in self.widths]
        for form, bonds in self.bonds.items():
            found += [Size(form=form, bond=bond, width=self.width) for bond in bonds]
            if form == "MPO":
                found += [Size(form=form, bond=8, width=width) for width in (self.width // 2, 2 * self.width)]
                found += [Size(form=form, bond=8, width=self.width, depth=depth) for depth in (1, 3)]
        return found

    def middle(self, form: str) -> Size:
        """Return the size at which rates are chosen."""
        if form == "dense":
            return Size(form=form, bond=0, width=self.widths[len(self.widths) // 2])
        bonds = self.bonds[form]
        return Size(form=form, bond=bonds[len(bonds) // 2], width=self.width)


def linear(size: Size, n_in: int, n_out: int, seed: int) -> nn.Module:
    """Make a layer of one form, with start values of the variance of a dense one."""
    if size.form == "dense":
        return nn.Linear(n_in, n_out)
    scale = 1.0 / np.sqrt(3.0 * n_in)  # the standard deviation of PyTorch's default
    return ADTNLinear(adtn.Generator((n_out, n_in), FORMS[size.form](size.bond), scale=scale, seed=seed))


def perceptron(size: Size, seed: int) -> nn.Module:
    """Make a network 784-width-...-10 with ``depth`` hidden layers; the last one is dense."""
    widths = [784, *[size.width] * size.depth]
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise(widths)):
        layers += [linear(size, a, b, 100 * seed + k), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(size.width, 10))


class Block(nn.Module):
    """A block of a transformer with layers of one form."""

    def __init__(self, size: Size, heads: int, seed: int) -> None:
        super().__init__()
        d = size.width
        self.heads = heads
        self.first, self.second = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = linear(size, d, 3 * d, seed), linear(size, d, d, seed + 1)
        self.up, self.down = linear(size, d, 4 * d, seed + 2), linear(size, 4 * d, d, seed + 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply attention and the two layers behind it."""
        n, length, d = x.shape
        qkv = self.qkv(self.first(x)).reshape(n, length, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, length, d))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """A decoder over characters."""

    def __init__(self, size: Size, seed: int, characters: int, length: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(characters, size.width), nn.Embedding(length, size.width)
        self.blocks = nn.Sequential(*[Block(size, 4, 1000 * seed + 10 * k) for k in range(size.depth)])
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, characters)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return scores of the next characters, ``(batch * length, characters)``."""
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x))).flatten(0, 1)


@cache
def images() -> tuple[torch.Tensor, ...]:
    """Load MNIST: training, held and test images with labels."""
    data = load_images("mnist")
    x, y = torch.tensor(data.x_train), torch.tensor(data.y_train, dtype=torch.long)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, used = order[:5000], order[5000:]
    return x[used], y[used], x[held], y[held], torch.tensor(data.x_test), torch.tensor(data.y_test, dtype=torch.long)


def image_batches(seed: int, steps: int) -> Iterator[Batch]:
    """Yield random batches of 128 images."""
    x, y, *_ = images()
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = torch.randint(len(x), (128,), generator=random)
        yield x[at], y[at]


LENGTH = 64


@cache
def text() -> tuple[torch.Tensor, int]:
    """Load the characters of Shakespeare, and how many there are."""
    raw = (Path(os.environ["ADTN_DATA"]) / "text" / "tinyshakespeare_input.txt").read_text()
    known = {c: k for k, c in enumerate(sorted(set(raw)))}
    return torch.tensor([known[c] for c in raw]), len(known)


def text_batches(seed: int, steps: int) -> Iterator[Batch]:
    """Yield random pieces of the first nine tenths."""
    ids, _ = text()
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = torch.randint(int(0.9 * len(ids)) - LENGTH - 1, (32, 1), generator=random) + torch.arange(LENGTH + 1)
        yield ids[at[:, :-1]], ids[at[:, 1:]].flatten()


def pieces(first: float, last: float) -> list[Batch]:
    """Return every second piece of a part of the text, at most 512."""
    ids, _ = text()
    starts = torch.arange(int(first * len(ids)), int(last * len(ids)) - LENGTH - 1, 2 * LENGTH)[:512]
    at = starts[:, None] + torch.arange(LENGTH + 1)
    return [(ids[part[:, :-1]], ids[part[:, 1:]].flatten()) for part in at.split(64)]


TASKS: Mapping[str, Task] = {
    "mlp": Task(
        network=perceptron,
        batches=image_batches,
        held=lambda: [(images()[2], images()[3])],
        test=lambda: [(images()[4], images()[5])],
        steps=600,
        width=512,
        bonds={
            "low rank": (2, 4, 8, 16, 32, 64),
            "MPO": (2, 4, 8, 16, 32, 64),
            "TTN": (2, 4, 8, 12, 16),
            "TTN, SiLU": (2, 4, 8, 12, 16),
        },
        widths=(8, 16, 32, 64, 128, 256, 512),
    ),
    "transformer": Task(
        network=lambda size, seed: Transformer(size, seed, text()[1], LENGTH),
        batches=text_batches,
        held=lambda: pieces(0.9, 0.95),
        test=lambda: pieces(0.95, 1.0),
        steps=400,
        width=128,
        bonds={"low rank": (2, 4, 8, 16, 32), "MPO": (2, 4, 8, 16, 32), "TTN": (2, 4, 8), "TTN, SiLU": (2, 4, 8)},
        widths=(16, 32, 64, 128),
    ),
}


def trained(task: Task, size: Size, lr: float, seed: int) -> nn.Module:
    """Train a network from scratch."""
    torch.manual_seed(seed)
    model = task.network(size, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, task.steps, pct_start=0.05)
    for x, y in task.batches(seed, task.steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def loss_on(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Return the mean cross entropy."""
    with torch.no_grad():
        found = [(float(nn.functional.cross_entropy(model(x), y, reduction="sum")), len(y)) for x, y in batches]
    return sum(total for total, _ in found) / sum(n for _, n in found)


def hidden_params(model: nn.Module) -> int:
    """Count the parameters of the layers whose form differs, with their biases."""
    rest = {id(p) for m in model.modules() if isinstance(m, nn.Embedding | nn.LayerNorm) for p in m.parameters()}
    last = model[-1] if isinstance(model, nn.Sequential) else model.head
    rest |= {id(p) for p in last.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in rest)


def main() -> None:
    """Choose rates, and train all sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), choices=[*TASKS, []])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(OUT.read_text())["scaling"] if OUT.exists() else []

    def add(row: dict[str, Any], task: Task, size: Size) -> None:
        if any(row.items() <= done.items() for done in rows):
            return
        began = time.process_time()
        model = trained(task, size, row["lr"], row["seed"])
        found = {"params": hidden_params(model), "all params": sum(p.numel() for p in model.parameters())}
        losses = {"held loss": loss_on(model, task.held())}
        if row["seed"] < 100:
            losses["test loss"] = loss_on(model, task.test())
        rows.append({**row, **found, **losses, "cpu_seconds": round(time.process_time() - began, 1)})
        print(rows[-1], flush=True)
        OUT.write_text(
            json.dumps({"command": "python bench/scaling.py", "machine": machine(), "scaling": rows}, indent=1) + "\n"
        )

    for name in options.tasks:
        task = TASKS[name]
        rates: dict[str, float] = {}
        for form in ("dense", *task.bonds):
            for lr in RATES:
                size = task.middle(form)
                add({"task": name, **asdict(size), "lr": lr, "seed": 100}, task, size)
            tried = [r for r in rows if (r["task"], r["form"], r["seed"]) == (name, form, 100)]
            rates[form] = min(tried, key=lambda row: row["held loss"])["lr"]
        for seed in range(options.seeds):
            for size in task.sizes():
                add({"task": name, **asdict(size), "lr": rates[size.form], "seed": seed}, task, size)


if __name__ == "__main__":
    main()
