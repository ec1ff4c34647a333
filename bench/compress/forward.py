"""Forward passes of compressed models beside the dense ones, in turns: ``python bench/compress/forward.py``.

MiniLM-L6 with half of the parameters in its layers, and with an eighth of their bytes, on 32 sentences of 48 tokens in
float32. Writes ``bench/results/compress-forward.json``.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import adtn
import torch
from adtn.bench import machine, seconds_in_turns
from adtn.compression import model_of

from models import CASES

OUT = Path(__file__).parents[1] / "results" / "compress-forward.json"


def main() -> None:
    """Compress and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="minilm")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = CASES[options.case]()
    params, entries = case.sizes()
    most = params - entries // 2
    small = adtn.Budget(bytes=case.file_bytes() - 4 * (entries - entries // 8))
    budgets = {"2x parameters": adtn.Budget(params=most), "8x bytes": small}
    data, (x, _) = list(islice(case.train(0), 16)), case.calibration[0]
    models: dict[str, Any] = {"dense": case.model.eval()}
    for name, budget in budgets.items():
        model = case.fresh().model
        config = adtn.Config(
            targets=case.targets, exclude=case.exclude, recipe=("closed-form", "normalise"), rest="same"
        )
        adtn.compress(model, config, budget=budget, data=data, progress=False)
        models[name] = model.eval()

    def run_of(model: Any) -> Any:
        def run() -> None:
            with torch.inference_mode():
                model(x)

        return run

    times = seconds_in_turns({name: run_of(model) for name, model in models.items()}, seconds=30.0, most=20, turns=5)
    rows = []
    dense = median(times["dense"])
    for name, seconds in times.items():
        quartiles = [x / dense for x in quantiles(seconds, n=4)]
        resident = model_of(models[name], None).resident_bytes()
        rows.append({"model": name, "times over dense, quartiles": quartiles, "resident bytes": resident})
        print(rows[-1])
    content = {"command": "python bench/compress/forward.py", "machine": machine(), "case": options.case}
    OUT.write_text(json.dumps({**content, "threads": options.threads, "compress_forward": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
