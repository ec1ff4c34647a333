"""Bytes against divergence: a codec beside what others would use, on texts it has not seen."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from autoray import do

from .._atomic import write_atomic
from .._typing import Array, Int
from ..errors import KVCacheError
from ._baselines import CacheBaseline, baselines
from ._calibrate import checked_texts, to_host
from ._codec import KVCodec
from ._decoder import Decoder
from ._page import page
from ._step import divergence

STEPS = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Steps of a report, relative to the calibrated one."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The cost and the loss of one way to store a prefix, for one text.

    Parameters
    ----------
    bits_per_value : float
        Of everything that is stored, the codec apart.
    divergence : float
        Mean KL of the next token, in nats, over the tokens that read the prefix.
    loss : float
        Mean negative log-likelihood of what the text goes on with, less that with the exact prefix.
    encode_seconds, decode_seconds : float
    """

    bits_per_value: float
    divergence: float
    loss: float
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """The means over texts of one way to store prefixes.

    Parameters
    ----------
    name : str
    bits_per_value, ratio : float
        ``ratio`` is relative to bfloat16.
    divergence, standard_error : float
        In nats; the standard error is that over texts.
    loss : float
        In nats per token.
    encode_seconds, decode_seconds : float
        Medians.
    """

    name: str
    bits_per_value: float
    ratio: float
    divergence: float
    standard_error: float
    loss: float
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True, kw_only=True)
class KVReport:
    """The cost and the loss of a codec, beside baselines.

    Parameters
    ----------
    rows : list of Row
    texts, prefix, continuation : int
        The number of texts, and the tokens of each that are stored and that read them.
    codec_bytes, model_bytes : int
    dense_bytes_per_token : float
        In bfloat16.
    prefill_seconds : float
        The median time to compute a prefix again.
    shares : dict of str to float
        The parts of the coded bits of the first text by kind and layers.
    """

    rows: list[Row]
    texts: int
    prefix: int
    continuation: int
    codec_bytes: int
    model_bytes: int
    dense_bytes_per_token: float
    prefill_seconds: float
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def break_even(self) -> float:
        """The number of tokens from which the codec and what it codes have fewer bytes than the cache in bfloat16."""
        own = next(row for row in self.rows if row.name.startswith("adtn"))
        return self.codec_bytes / (self.dense_bytes_per_token * (1.0 - 1.0 / own.ratio))

    def __str__(self) -> str:
        names = {
            "bits per value": 15,
            "times smaller": 15,
            "KL": 10,
            "±": 9,
            "loss": 10,
            "encode s": 10,
            "decode s": 10,
        }
        head = " " * 34 + "".join(f"{name:>{width}}" for name, width in names.items())
        lines = [
            f"{row.name:34}{row.bits_per_value:15.3f}{row.ratio:15.1f}{row.divergence:10.4f}{row.standard_error:9.4f}"
            f"{row.loss:+10.4f}{row.encode_seconds:10.2f}{row.decode_seconds:10.2f}"
            for row in self.rows
        ]
        return "\n".join(
            (
                f"{self.texts} prefixes of {self.prefix:,} tokens, each read by the next {self.continuation}; "
                f"times smaller than bfloat16; KL and loss in nats per token",
                head,
                *lines,
                f"codec: {self.codec_bytes:,} bytes, {100 * self.codec_bytes / self.model_bytes:.1f} % of the model; "
                f"pays from {self.break_even:,.0f} tokens on; prefilling again takes {self.prefill_seconds:.2f} s",
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "break_even": self.break_even}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``.json`` or ``.html``."""
        kind = Path(path).suffix
        if kind not in (".json", ".html"):
            raise KVCacheError(f"Got {os.fspath(path)!r}; expected a name that ends with .json or .html.")
        text = json.dumps(self.to_json(), indent=1) if kind == ".json" else page(self)
        write_atomic(path, text.encode())


@dataclass(frozen=True, kw_only=True)
class _Prefix:
    ids: Int[np.ndarray, " tokens"]
    rest: Int[np.ndarray, " n"]
    cache: Any
    exact: Array
    seconds: float


def kv_report(
    codec: KVCodec,
    token_ids: Any,
    *,
    continuation: int = 128,
    steps: Sequence[float] = STEPS,
    with_baselines: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> KVReport:
    """Measure a codec on texts it was not calibrated on.

    Prefixes are computed exactly and stored; then a continuation reads what comes back. One pass over a cache that is
    compressed while it grows would read nothing compressed.

    Parameters
    ----------
    codec : KVCodec
        With its model.
    token_ids : array, (texts, length), or list of arrays
        Prefixes with their continuations.
    continuation : int
        The number of tokens at the end of each text that read the others.
    steps : sequence of float
        Relative to the calibrated step; those that are finer than the codec allows are left out.
    with_baselines : bool
        Whether integers, rotated codes, low rank and a window are measured, too.
    say : callable
        Receives lines of progress.
    """
    decoder = codec.decoder
    if decoder is None:
        raise KVCacheError("This codec has no model. Load it with KVCodec.load(path, model=model).")
    texts = checked_texts(token_ids, continuation, codec.sinks)
    own = [step for step in steps if step >= codec.relative_finest - 1e-9] or [1.0]
    found: dict[str, list[Reading]] = {}
    seconds: list[float] = []
    shares: dict[str, float] = {}
    for n, ids in enumerate(texts):
        say(f"text {n + 1} of {len(texts)}")
        prefix = _prefilled(decoder, ids, continuation)
        seconds.append(prefix.seconds)
        shares = shares or codec.shares(decoder.states(prefix.cache), prefix.ids)
        for step in own:
            found.setdefault(f"adtn, step {step:g}", []).append(_coded(codec, prefix, step))
        for baseline in baselines(codec.sinks) if with_baselines else ():
            found.setdefault(baseline.name, []).append(_baseline(decoder, prefix, baseline))
    values = sum(int(np.prod(basis.mean.shape)) for bases in codec.code.bases for basis in bases)
    return KVReport(
        rows=[_row(name, readings) for name, readings in found.items()],
        texts=len(texts),
        prefix=max(len(ids) for ids in texts) - continuation,
        continuation=continuation,
        codec_bytes=codec.nbytes,
        model_bytes=decoder.nbytes,
        dense_bytes_per_token=2.0 * values,
        prefill_seconds=float(np.median(seconds)),
        shares=shares,
    )


def _prefilled(decoder: Decoder, ids: Int[np.ndarray, " n"], continuation: int) -> _Prefix:
    first, rest = ids[:-continuation], ids[-continuation:]
    start = time.perf_counter()
    cache = decoder.prefill(first)
    seconds = time.perf_counter() - start
    exact = decoder.log_probabilities(decoder.prefill(first), rest)
    return _Prefix(ids=first, rest=rest, cache=cache, exact=exact, seconds=seconds)


def _coded(codec: KVCodec, prefix: _Prefix, step: float) -> Reading:
    decoder = codec.decoder
    assert decoder is not None
    start = time.perf_counter()
    parked = codec.encode(prefix.cache, prefix.ids, step=step)
    middle = time.perf_counter()
    cache = codec.decode(parked)
    end = time.perf_counter()
    loss = _losses(prefix, decoder.log_probabilities(cache, prefix.rest))
    return Reading(
        bits_per_value=parked.bits_per_value, encode_seconds=middle - start, decode_seconds=end - middle, **loss
    )


def _baseline(decoder: Decoder, prefix: _Prefix, baseline: CacheBaseline) -> Reading:
    states = decoder.states(prefix.cache, rotated=baseline.rotated).map(to_host)
    again, bits = baseline.recode(states)
    like = decoder.like
    cache = decoder.cache(
        again.map(lambda x: do("asarray", x, like=like)), decoder.others(prefix.cache), rotated=baseline.rotated
    )
    position = len(prefix.ids) if baseline.window else None
    loss = _losses(prefix, decoder.log_probabilities(cache, prefix.rest, position=position))
    return Reading(bits_per_value=bits / (states.k.size + states.v.size), **loss)


def _losses(prefix: _Prefix, found: Array) -> dict[str, float]:
    exact, at = prefix.exact, (np.arange(len(prefix.rest) - 1), prefix.rest[1:])
    more = to_host(exact[at[0], at[1]] - found[at[0], at[1]])
    return {"divergence": divergence(exact, found), "loss": float(more.mean()) if more.size else 0.0}


def _row(name: str, readings: Sequence[Reading]) -> Row:
    divergences = [one.divergence for one in readings]
    bits = float(np.mean([one.bits_per_value for one in readings]))
    spread = float(np.std(divergences, ddof=1)) / len(readings) ** 0.5 if len(readings) > 1 else 0.0
    return Row(
        name=name,
        bits_per_value=bits,
        ratio=16.0 / bits,
        divergence=float(np.mean(divergences)),
        standard_error=spread,
        loss=float(np.mean([one.loss for one in readings])),
        encode_seconds=float(np.median([one.encode_seconds for one in readings])),
        decode_seconds=float(np.median([one.decode_seconds for one in readings])),
    )
