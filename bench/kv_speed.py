"""Encoding and decoding a cache of SmolLM2-135M beside prefilling its text again, on one and on two threads.

Run as ``python bench/kv_speed.py`` with what ``bench/kv.py`` needs, after it, on a machine that does nothing else;
writes ``bench/results/kv-speed.json``. The three are timed in turns, so that ratios are those of one run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from adtn.kv import KVCodec
from kv_case import Case
from processes import write_results

ROUNDS = 5


def timed(case: Case, codec: KVCodec, layers: int, threads: int) -> dict[str, Any]:
    """Time one codec."""
    ids = case.pieces["WikiText-2"][0][: case.prefix]
    torch.set_num_threads(threads)
    cache = case.decoder.prefill(ids)
    parked = codec.encode(cache, ids)
    codec.decode(parked)
    seconds: dict[str, list[float]] = {"prefill": [], "encode": [], "decode": []}
    for _ in range(ROUNDS):
        for name, work in (
            ("prefill", lambda: case.decoder.prefill(ids)),
            ("encode", lambda: codec.encode(cache, ids)),
            ("decode", lambda: codec.decode(parked)),
        ):
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    ratios = [(e + d) / p for p, e, d in zip(*seconds.values(), strict=True)]
    row = {"layers": layers, "threads": threads, "prefix": case.prefix, "ratio": median(ratios)}
    return {**row, **{f"{name}_seconds": median(own) for name, own in seconds.items()}}


def main() -> None:
    """Time and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kv-speed.json")
    parser.add_argument("--layers", type=int, nargs="*", default=[10, 30, 1], help="layers per basis")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--prefix", type=int, default=1024)
    arguments = parser.parse_args()
    case = Case(arguments.prefix)
    rows: list[dict[str, Any]] = []
    for layers in arguments.layers:
        codec = case.codec(case.mixed(64), layers)
        for threads in arguments.threads:
            rows.append(timed(case, codec, layers, threads))
            print(rows[-1], flush=True)
            write_results(arguments.out, kv_speed=rows)


if __name__ == "__main__":
    main()
