"""Controls of coded caches of SmolLM2-135M: what each part of the codec is worth, one change at a time.

Run as ``python bench/kv_controls.py`` with what ``bench/kv.py`` needs, after it, as it reads the same moments; writes
``bench/results/kv-controls.json``. Codecs have ten layers per basis, and no coefficients below a quarter of a step. Two
texts of each kind are coded, with prefixes of 1,024 tokens if nothing else is said, and read by the next 128 tokens.
``late`` is the divergence of the last 32 of them, which are further from the prefix. If the package ``optimum-quanto``
is there, the cache of transformers with integers is measured, too. Other calibrations have more, fewer or other texts
of the same kinds, texts of one kind alone, or also plays, which are dialogue (other pieces than those that are coded).
A run that was interrupted goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn.kv import KVCodec
from adtn.kv._calibrate import Precision
from adtn.kv._code import Places
from adtn.kv._fit import without_inactive
from adtn.kv._order import Order
from adtn.kv._tables import grid_index
from kv_case import CONTINUATION, Case
from processes import write_results

LAYERS, EACH, LATE = 10, 2, 32
LEAST = 0.25  # of a step; the default of half of that is in bench/kv.py
KINDS = ("WikiText-2", "Shakespeare", "Python")


@dataclass(frozen=True)
class Prefix:
    """A prefix with its exact cache, and what follows with its exact log-probabilities."""

    ids: np.ndarray
    rest: np.ndarray
    cache: Any
    exact: torch.Tensor


@cache
def prefixes(case: Case, kind: str) -> list[Prefix]:
    """Read the texts of one kind exactly."""
    found: list[Prefix] = []
    for ids in case.pieces[kind][:EACH]:
        first, rest = ids[: case.prefix], ids[case.prefix :]
        exact = case.decoder.log_probabilities(case.decoder.prefill(first), rest)
        found.append(Prefix(ids=first, rest=rest, cache=case.decoder.prefill(first), exact=exact))
    return found


def measured(codec: KVCodec, own: Prefix, *, shuffled: bool = False, **options: Any) -> dict[str, float]:
    """Store one prefix, and read on from what comes back."""
    decoder = codec.decoder
    assert decoder is not None
    ids = np.random.default_rng(0).permutation(own.ids) if shuffled else own.ids
    parked = codec.encode(own.cache, ids, **options)
    found = decoder.log_probabilities(codec.decode(parked), own.rest)
    divergence = (own.exact.exp() * (own.exact - found)).sum(-1)
    n = min(codec.sinks, len(ids))
    order = Order.by_id(ids[n:]) if parked.by_id else Order.natural(len(ids) - n)
    ideal = codec.code.ideal_bits(
        decoder.states(own.cache).map(lambda x: x[n:]), Places(order=order, step=parked.step, is_even=parked.is_even)
    )
    return {
        "bits": parked.bits_per_value,
        "coded_bytes": parked.coded.nbytes,
        "ideal_bytes": sum(map(sum, ideal)) / 8.0,
        "divergence": float(divergence.mean()),
        "late": float(divergence[-LATE:].mean()),
    }


def quantized(case: Case, own: Prefix, bits: int) -> dict[str, float]:
    """Read on from a ``QuantizedCache`` of transformers with the backend quanto, which has coded the whole prefix."""
    from transformers import QuantizedCache

    model = case.loaded[0]
    cache = QuantizedCache(backend="quanto", config=model.config, nbits=bits, axis_key=0, axis_value=0)
    with torch.no_grad():
        model(input_ids=torch.as_tensor(own.ids)[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    held = [x for layer in cache.layers for x in (layer._quantized_keys, layer._quantized_values)]
    codes = sum(x._data._data.nbytes for x in held)
    scales = sum(x._scale.numel() + x._shift.numel() for x in held)
    divergence = (own.exact.exp() * (own.exact - case.decoder.log_probabilities(cache, own.rest))).sum(-1)
    return {
        "bits": 8 * (codes + 2 * scales) / sum(x.numel() for x in held),  # scales have the dtype of the model
        "divergence": float(divergence.mean()),
        "late": float(divergence[-LATE:].mean()),
    }


@dataclass(frozen=True, kw_only=True)
class Control:
    """One change of the codec, of how it is calibrated, or of how it is used."""

    name: str
    codec: Callable[[], KVCodec]
    case: Case
    options: dict[str, Any] = field(default_factory=dict)


def controls(case: Case, texts: int) -> Iterator[Control]:
    """Return all controls; codecs are made when they are asked for."""

    @cache
    def usual() -> KVCodec:
        return case.codec(case.mixed(texts), LAYERS, least=LEAST)

    def calibrated(pieces: Callable[[], list[np.ndarray]], **change: Any) -> Callable[[], KVCodec]:
        return lambda: case.codec(pieces(), LAYERS, least=LEAST, **change)

    def smaller(precision: Precision) -> Callable[[], KVCodec]:
        def make() -> KVCodec:
            codec = usual()
            least = codec.step + int(grid_index(np.array(0.7)))
            return replace(codec, code=without_inactive(codec.code, least, precision), finest=least)

        return make

    uses: dict[str, dict[str, Any]] = {
        "the codec": {},
        "the codec, step 0.92": {"step": 0.92},
        "the codec, step 0.84": {"step": 0.84},
        "natural order": {"order": "natural"},
        "shuffled token ids": {"shuffled": True},
        "Golomb-Rice codes": {"coder": "rice"},
        "Golomb-Rice codes, step 0.8": {"coder": "rice", "step": 0.8},
        "one step for all tokens": {"finer_at_end": False},
        "one step for all tokens, 1.2": {"finer_at_end": False, "step": 1.2},
    }
    for name, options in uses.items():
        yield Control(name=name, codec=usual, case=case, options=options)
    for prefix in (256, 2048, 4096):
        yield Control(name=f"prefixes of {prefix:,} tokens", codec=usual, case=Case(prefix))
    yield Control(name="components for steps from 0.7", codec=smaller("int8"), case=case)
    yield Control(name="components for steps from 0.7, the smallest in 4 bits", codec=smaller("int4"), case=case)
    for n in (4, 16, 32, 128, 256):
        yield Control(name=f"{n} texts of calibration", codec=calibrated(lambda n=n: case.mixed(n)), case=case)
    for first in (64, 128):
        own = calibrated(lambda first=first: case.mixed(texts, first=first))
        yield Control(name=f"{texts} other texts of calibration, after {first}", codec=own, case=case)
    for kinds in (("wiki",), ("code",), ("wiki", "code", "plays")):
        own = calibrated(lambda kinds=kinds: case.mixed(32, kinds))
        yield Control(name=f"32 texts of calibration: {', '.join(kinds)}", codec=own, case=case)
    for name, change in (
        ("scalar weights", {"weighting": "scalar"}),
        ("scalar weights, no basis", {"weighting": "scalar", "with_basis": False}),
        ("no weights", {"weighting": "none"}),
    ):
        yield Control(name=name, codec=calibrated(lambda: case.mixed(texts), **change), case=case)


def main() -> None:
    """Measure what is not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kv-controls.json")
    parser.add_argument("--calibrated", type=int, default=64, help="texts of the calibration")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["kv_controls"] if arguments.out.exists() else []

    def is_missing(name: str) -> bool:
        return name not in {row["control"] for row in rows}

    def add(name: str, case: Case, measure: Callable[[Prefix], dict[str, float]], codec_bytes: int = 0) -> None:
        for kind in KINDS:
            found = [measure(own) for own in prefixes(case, kind)]
            row = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
            size = {"texts": len(found), "prefix": case.prefix, "continuation": CONTINUATION}
            rows.append({"control": name, "text": kind, **size, "codec_bytes": codec_bytes, **row})
            print(rows[-1], flush=True)
        write_results(arguments.out, kv_controls=rows)

    case = Case()
    for bits in (4, 2) if find_spec("optimum") else ():
        if is_missing(name := f"QuantizedCache of transformers (quanto), {bits} bits"):
            add(name, case, partial(quantized, case, bits=bits))
    for control in controls(case, arguments.calibrated):
        if is_missing(control.name):
            codec = replace(control.codec(), decoder=control.case.decoder)
            add(control.name, control.case, partial(measured, codec, **control.options), codec.nbytes)


if __name__ == "__main__":
    main()
