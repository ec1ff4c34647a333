"""The automatic choice with and without generators that layers of one input share: ``python bench/compress/joint.py``.

Nothing is trained. Writes ``bench/results/compress-joint.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import adtn
import torch
from adtn.bench import machine
from adtn.compression import _joint
from case import Case

from models import CASES

BUDGETS = (("parameters", 2.0), ("parameters", 4.0), ("bytes", 12.0), ("bytes", 16.0), ("bytes", 24.0))
OUT = Path(__file__).parents[1] / "results" / "compress-joint.json"


def main() -> None:
    """Compress, and write the qualities."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=["stories260k"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(OUT.read_text())["compress_joint"] if OUT.exists() else []
    offered = _joint.joint_forms
    for name in options.cases:
        case = CASES[name]()
        for unit, ratio in BUDGETS:
            for joint in (False, True):
                row = {"case": name, "unit": unit, "ratio": ratio, "joint": joint}
                if any(row.items() <= done.items() for done in rows):
                    continue
                _joint.joint_forms = offered if joint else lambda search, selection: []
                rows.append({**row, **compressed(case.fresh(), unit, ratio)})
                print(rows[-1], flush=True)
                content = {"command": "python bench/compress/joint.py", "machine": machine()}
                OUT.write_text(json.dumps({**content, "compress_joint": rows}, indent=1) + "\n")


def compressed(case: Case, unit: str, ratio: float) -> dict[str, Any]:
    """Compress within a budget of the layers, and measure."""
    params, entries = case.sizes()
    most = params - entries + int(entries / ratio)
    budget = adtn.Budget(params=most)
    if unit == "bytes":
        budget = adtn.Budget(bytes=case.file_bytes() - 4 * (params - most))
    config = adtn.Config(targets=case.targets, exclude=case.exclude, tune_steps=0, rest="same")
    data, held = list(islice(case.train(0), case.batches)), case.validation[: case.held]
    began = time.process_time()
    report = adtn.compress(case.model, config, budget=budget, data=data, validation=held, progress=False)
    seconds = time.process_time() - began
    return {
        "groups": [row.name for row in report.layers if " + " in row.name],
        "params": report.after.params,
        "bytes": report.file_bytes or report.after.bytes,
        "quality": {name: value for name, (value, _) in case.quality(case.model).items()},
        "cpu_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
