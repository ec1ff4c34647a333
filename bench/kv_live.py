"""Live caches of SmolLM2-135M: bits of coded tokens and of the whole cache, against the divergence of what reads them.

Run as ``python bench/kv_live.py`` with what ``bench/kv.py`` needs; writes ``bench/results/kv-live.json``. A prefix of
1,024 tokens is read in pieces of 256 through the cache, so that later pieces read what is coded of earlier ones; the
next 128 tokens are compared with those that an exact cache gives. The codec, with one basis per layer, is calibrated on
the same texts as in ``bench/kv.py``. The model is in float32; bits of the whole cache are also given with 16 bits for
every value that is not coded. A run that was interrupted goes on where it ended; delete the file to start again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn.kv._step import divergence
from kv_case import CONTINUATION, Case
from processes import write_results

PREFIX, PIECE = 1024, 256
TEXTS = {"WikiText-2": 6, "Shakespeare": 4, "Python": 4}
_USUAL: dict[str, Any] = {"window": 128, "chunk": 256, "step": 1.4, "coder": "ans", "order": "ids"}
SETTINGS: tuple[dict[str, Any], ...] = tuple(
    {**_USUAL, **change}
    for change in (
        {},
        {"step": 1.0},
        {"step": 1.7},
        {"coder": "rice"},
        {"order": "natural"},
        {"window": 0, "step": 1.0},
        {"window": 0},
    )
)


def read(model: Any, cache: Any, ids: np.ndarray, position: int) -> torch.Tensor:
    """Read tokens, and return the log-probabilities after each."""
    own = torch.as_tensor(ids)[None]
    with torch.no_grad():
        places = position + torch.arange(own.shape[1])[None]
        return model(input_ids=own, position_ids=places, past_key_values=cache).logits[0].log_softmax(-1)


def read_prefix(model: Any, cache: Any, ids: np.ndarray) -> None:
    """Read a prefix in pieces."""
    for first in range(0, PREFIX, PIECE):
        read(model, cache, ids[first : first + PIECE], first)


def scores(model: Any, cache: Any, ids: np.ndarray) -> torch.Tensor:
    """Read a prefix in pieces, and return the log-probabilities of what follows."""
    read_prefix(model, cache, ids)
    return read(model, cache, ids[PREFIX:], PREFIX)


def measured(model: Any, cache: Any, ids: np.ndarray, exact: torch.Tensor) -> dict[str, Any]:
    """Compare a live cache with exact log-probabilities; bits are those after the prefix."""
    read_prefix(model, cache, ids)
    dense = sum(
        x.nbytes
        for layer in cache.layers
        for x in (layer.keys, layer.values, *(x for own in layer.rows for x in own.sinks))
    )
    values = 8 * cache.nbytes / cache.bits_per_value
    row = {
        "coded_tokens": sum(own.coded_tokens for own in cache.layers[0].rows),
        "compressed_bits": cache.compressed_bits_per_value,
        "whole_bits": cache.bits_per_value,
        "whole_bits_16": 8 * (cache.nbytes - dense / 2) / values,
    }
    # one token first, as if it were generated
    one = read(model, cache, ids[PREFIX : PREFIX + 1], PREFIX)
    found = torch.cat((one, read(model, cache, ids[PREFIX + 1 :], PREFIX + 1)))
    return {**row, "divergence": divergence(exact, found)}


def main() -> None:
    """Calibrate, measure and save."""
    from transformers import DynamicCache

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kv-live.json")
    parser.add_argument("--kl", type=float, default=0.0065)
    arguments = parser.parse_args()
    case = Case(PREFIX)
    model, decoder = case.loaded[0], case.decoder
    codec = case.codec(case.mixed(64), 1, kl=arguments.kl, precision="float16")
    print(f"codec of {codec.nbytes:,} bytes, {100 * codec.nbytes / decoder.nbytes:.2f} % of the model", flush=True)
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["kv_live"] if arguments.out.exists() else []
    for name, n in TEXTS.items():
        for k, ids in enumerate(case.pieces[name][:n]):
            exact = scores(model, DynamicCache(config=model.config), ids)
            for options in SETTINGS:
                own = {"text": name, "segment": k, **options}
                if any(own.items() <= row.items() for row in rows):
                    continue
                rows.append({**own, **measured(model, codec.live(**options), ids, exact)})
                print(rows[-1], flush=True)
            write_results(
                arguments.out,
                codec={"bytes": codec.nbytes, "model_bytes": decoder.nbytes, "kl": arguments.kl},
                prefix=PREFIX,
                continuation=CONTINUATION,
                piece=PIECE,
                kv_live=rows,
            )


if __name__ == "__main__":
    main()
