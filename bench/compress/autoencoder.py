"""Autoencoders of activations with MPO layers, beside principal components: ``python bench/compress/autoencoder.py``.

The outputs of the last stage of ResNet-20, ``(64, 8, 8)`` per image, pass an MPO encoder to a few features and an MPO
decoder back; the bond between both is what they keep of an activation. Both start at random, or as decompositions of
principal components. Beside them stand principal components, as many and of as many parameters, and random projections
as a control. Features of 5,000 test images are judged by what is reconstructed, by the variance between classes over
that within them, and by a linear classifier on them (ridge regression). Needs ``ADTN_DATA``; writes
``bench/results/autoencoder.json``.
"""

from __future__ import annotations

import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import adtn
import torch
from adtn.bench import machine
from torch import nn

from adtn_backends.torch import ADTNLinear
from models import CASES

OUT = Path(__file__).parents[1] / "results" / "autoencoder.json"
TRAIN, TEST, STEPS, BATCH, LR = 10_000, 5_000, 600, 256, 3e-3
FEATURES, BONDS, SEEDS = (16, 64), (8, 24), (0, 1, 2)


def activations(model: nn.Module, batches: Any, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the flattened outputs of the last stage, and labels."""
    found: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    hook = model.layer3.register_forward_hook(lambda module, x, y: found.append(y.flatten(1).clone()))
    with torch.no_grad():
        for x, y in batches:
            model(x)
            labels.append(y)
            if sum(map(len, labels)) >= most:
                break
    hook.remove()
    return torch.cat(found)[:most], torch.cat(labels)[:most]


def autoencoder(basis: torch.Tensor, bond: int, start: str, seed: int) -> nn.Sequential:
    """Make an encoder and a decoder, which are MPO layers; ``basis`` has principal components as columns."""
    n, features = basis.shape
    encoder = adtn.Generator((features, n), adtn.MPO(bond=bond), scale=n**-0.5, seed=seed)
    decoder = adtn.Generator((n, features), adtn.MPO(bond=bond), scale=features**-0.5, seed=seed + 1000)
    if start == "components":
        encoder = adtn.decompose(encoder, basis.T.double().numpy())
        decoder = adtn.decompose(decoder, basis.double().numpy())
    return nn.Sequential(ADTNLinear(encoder), ADTNLinear(decoder))


def trained(model: nn.Sequential, x: torch.Tensor, seed: int) -> nn.Sequential:
    """Train to reconstruct centred activations."""
    optimizer = torch.optim.Adam(model.parameters(), LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    random = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        own = x[torch.randint(len(x), (BATCH,), generator=random)]
        optimizer.zero_grad()
        (model(own) - own).square().mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def judged(z: torch.Tensor, labels: torch.Tensor, z_test: torch.Tensor, labels_test: torch.Tensor) -> dict[str, float]:
    """Return the separability of features, and the accuracy of ridge regression on them."""
    mean, std = z.mean(0), z.std(0) + 1e-6
    a, b = (nn.functional.pad((part - mean) / std, (0, 1), value=1.0).double() for part in (z, z_test))
    weights = torch.linalg.solve(a.T @ a + torch.eye(a.shape[1]), a.T @ nn.functional.one_hot(labels, 10).double())
    guess = (b @ weights).argmax(1)
    centre = z_test.mean(0)
    classes = [z_test[labels_test == k] for k in range(10)]
    between = sum(len(c) * float((c.mean(0) - centre).square().sum()) for c in classes)
    within = sum(float((c - c.mean(0)).square().sum()) for c in classes)
    return {"separability": between / within, "accuracy": 100.0 * float((guess == labels_test).double().mean())}


def main() -> None:
    """Train all autoencoders, and compare."""
    torch.set_num_threads(1)
    case = CASES["resnet20"]()
    x, labels = activations(case.model, case.train(0), TRAIN)
    x_test, labels_test = activations(case.model, case.test, TEST)
    mean = x.mean(0)
    std = (x - mean).std()
    x, x_test = (x - mean) / std, (x_test - mean) / std
    power = float(x_test.square().sum())
    n = x.shape[1]
    _, vectors = torch.linalg.eigh(x.T @ x)
    components = vectors.flip(1)
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any], z: torch.Tensor, z_test: torch.Tensor, lost: float) -> None:
        rows.append({**row, "relative error": (lost / power) ** 0.5, **judged(z, labels, z_test, labels_test)})
        print(rows[-1], flush=True)
        content = {"command": "python bench/compress/autoencoder.py", "machine": machine(), "autoencoder": rows}
        OUT.write_text(json.dumps(content, indent=1) + "\n")

    def project(name: str, basis: torch.Tensor, seed: int = 0) -> None:
        z, z_test = x @ basis, x_test @ basis
        row = {"method": name, "features": basis.shape[1], "params": basis.numel(), "seed": seed}
        add(row, z, z_test, float((z_test @ basis.T - x_test).square().sum()))

    for features in FEATURES:
        project("principal components", components[:, :features])
        for seed in SEEDS:
            random = torch.randn(n, features, generator=torch.Generator().manual_seed(seed))
            project("random projection", torch.linalg.qr(random)[0], seed)
        for bond in BONDS:
            for start, seed in product(("components", "random"), SEEDS):
                began = time.process_time()
                model = trained(autoencoder(components[:, :features], bond, start, seed), x, seed)
                params = sum(w.numel() for layer in model for k, w in layer.named_parameters() if k != "bias")
                if seed == 0 and start == "random":
                    project("principal components, equal parameters", components[:, : max(params // n, 1)])
                with torch.no_grad():
                    z, z_test = model[0](x), model[0](x_test)
                    lost = float((model[1](z_test) - x_test).square().sum())
                seconds = round(time.process_time() - began, 1)
                row = {"method": f"MPO({bond}), {start}", "features": features, "params": params, "seed": seed}
                add({**row, "cpu_seconds": seconds}, z, z_test, lost)


if __name__ == "__main__":
    main()
