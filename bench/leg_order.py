"""A comparison of axis order with interleaved legs: the same TTN on the same digits, with five seeds.

Run as ``python bench/leg_order.py``; writes ``bench/results/leg-order.json``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from adtn import TTN, Layout
from adtn.demo._cases import PROBLEMS, Case
from adtn.demo._data import load_images
from adtn.demo._run import Report, train

SEEDS = 5
STEPS = 600


def main() -> None:
    """Train, and write the results."""
    images, problem = load_images("digits"), replace(PROBLEMS["digits"][0], steps=STEPS)
    report = Report("digits", [])
    for order in ("axis", "interleaved"):
        layout = Layout.from_factors((256, 256), ((16, 16), (16, 16)), order)
        for seed in range(SEEDS):
            result, _ = train(
                problem, Case(name=f"TTN, {order}", topology=TTN(bond=4), layout=layout), images, "numpy:cpu", seed
            )
            report.results.append(result)
    path = Path(__file__).parent / "results" / "leg-order.json"
    path.write_text(json.dumps(report.to_json("python bench/leg_order.py"), indent=1) + "\n")


if __name__ == "__main__":
    main()
