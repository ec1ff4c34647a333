"""The trained models of the compression benchmarks, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from case import Case
from images import lenet5, resnet
from language import minilm, smollm2, stories260k

CASES: Mapping[str, Callable[[], Case]] = {
    "lenet5": lenet5,
    "resnet20": lambda: resnet(20),
    "resnet56": lambda: resnet(56),
    "stories260k": stories260k,
    "minilm": minilm,
    "smollm2": smollm2,
}
