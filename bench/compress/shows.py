"""Models and data of the report pages in ``docs/guide/reports``, for ``adtn compress``.

Run in this folder::

    adtn compress shows:resnet56 --budget 12x --config shows.toml --data shows:images --test shows:test_images \\
        --out resnet56
    adtn compress shows:minilm --budget 8x --config shows.toml --data shows:sentences --score shows:cosine --out minilm
"""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import Any

from case import Batches, Case
from torch import nn

from models import CASES

_case = cache(lambda name: CASES[name]())


def resnet56() -> nn.Module:
    """Return the ResNet for CIFAR-10."""
    return _fresh("resnet56").model


def images() -> Batches:
    """Return 24 batches of augmented training images."""
    return list(islice(_case("resnet56").train(0), 24))


def test_images() -> Batches:
    """Return all test images in batches of 500."""
    return _case("resnet56").test


def minilm() -> nn.Module:
    """Return the sentence model."""
    return _fresh("minilm").model


def sentences() -> Batches:
    """Return 16 batches of sentences with their embeddings."""
    return _case("minilm").calibration


def cosine(model: Any) -> float:
    """Return the mean cosine with the embeddings of the dense model, over test sentences."""
    return dict(_case("minilm").quality(model))["cosine"][0]


def _fresh(name: str) -> Case:
    return _case(name).fresh()
