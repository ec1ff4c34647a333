"""Classifiers of images: LeNet-5 on MNIST and ResNets on CIFAR-10.

LeNet-5 was trained by ``bench/networks/train.py`` and is stored with its results; ResNets are read from ``ADTN_DATA``.
"""

from __future__ import annotations

import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from case import Batches, Case, Quality, of_proportion
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "networks"))  # the benchmarks are scripts, not a package

from data import load
from dense import NETWORKS
from train import RESULTS, as_input, augment


def lenet5() -> Case:
    """Load LeNet-5 with the images of MNIST, without augmentation, as it was trained."""
    return _classifier("lenet5", "mnist", RESULTS / "dense/lenet5-mnist.safetensors", 0, False)


def resnet(depth: int) -> Case:
    """Load a ResNet with the images of CIFAR-10."""
    weights = Path(os.environ["ADTN_DATA"]) / f"weights/resnet{depth}_cifar10.safetensors"
    return _classifier(f"resnet{depth}", "cifar10", weights, 4, True)


def _classifier(name: str, data: str, weights: Path, shift: int, flip: bool) -> Case:
    images = load(data)
    model = NETWORKS[name](10)
    model.load_state_dict(load_file(weights))
    x, y = torch.from_numpy(images.x_train), torch.from_numpy(images.y_train)
    x_test, y_test = torch.from_numpy(images.x_test), torch.from_numpy(images.y_test)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    held, used = order[:2000], order[2000:]

    def plain(index: torch.Tensor) -> Batches:
        return [(as_input(x[part], data), y[part]) for part in index.split(128)]

    def train(seed: int) -> Any:
        random = torch.Generator().manual_seed(seed + 1)
        while True:
            for part in used[torch.randperm(len(used), generator=random)].split(128):
                if len(part) == 128:
                    # the ResNets were trained with black borders, which changes the statistics of their layers
                    yield as_input(augment(x[part], random, shift, flip), data), y[part]

    def quality(model: nn.Module) -> Quality:
        with torch.inference_mode():
            model.eval()
            right = [
                int((model(as_input(a, data)).argmax(1) == b).sum())
                for a, b in zip(x_test.split(500), y_test.split(500), strict=True)
            ]
        part = sum(right) / len(x_test)
        return {"accuracy": (100.0 * part, 100.0 * of_proportion(part, len(x_test)))}

    return Case(
        name=name,
        model=model.eval(),
        calibration=list(islice(train(-1), 24)),
        validation=plain(held),
        train=train,
        quality=quality,
        test=[(as_input(a, data), b) for a, b in zip(x_test.split(500), y_test.split(500), strict=True)],
    )
