"""Full trainings of compressed models: ``python bench/compress/full.py resnet20 --bytes 12 --steps 8000``.

The budget is met by the automatic choice, the whole model is then trained with the dense one as teacher; integers are
trained as integers. A training that was interrupted continues where it was. Results are written to
``bench/results/compress-<case>-full.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import adtn
import torch
from adtn.bench import machine
from pareto import quality_of

from models import CASES

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Stream:
    """A sequence of batches that are made when they are needed, the same ones every time."""

    batches: Callable[[], Iterator[Any]]
    size: int

    def __iter__(self) -> Iterator[Any]:
        return islice(self.batches(), self.size)

    def __len__(self) -> int:
        return self.size


def main() -> None:
    """Compress, train and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--bytes", type=float, help="ratio of bytes")
    parser.add_argument("--params", type=float, help="ratio of parameters")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--distill", type=float)
    parser.add_argument("--formats", nargs="*", help="integer formats, such as int4/32, to choose from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="where the training is continued")
    options = parser.parse_args()
    torch.set_num_threads(1)
    case = CASES[options.case]()
    params, entries = case.sizes()
    ratio = options.bytes or options.params
    most = params - entries + int(entries / ratio)
    saved = 4 * (params - most)
    budget = adtn.Budget(bytes=case.file_bytes() - saved) if options.bytes else adtn.Budget(params=most)
    chosen: dict[str, Any] = {}
    if options.formats:
        chosen["precisions"] = tuple(precision_of(text) for text in options.formats)
    config = adtn.Config(
        targets=case.targets,
        exclude=case.exclude,
        tune_steps=options.steps,
        tune_lr=options.lr,
        tune_optimizer=options.optimizer,
        distill=options.distill,
        autocast="bfloat16",
        rest="same",
        seed=options.seed,
        **chosen,
    )
    began, continued = time.process_time(), any(options.folder.glob("training-*"))
    report = adtn.compress(
        case.model,
        config,
        budget=budget,
        data=Stream(lambda: case.train(options.seed), options.steps),
        validation=case.validation[:8],
        folder=options.folder,
        progress=print,
    )
    rest = 4 * (params - entries)
    row = {
        **{k: v for k, v in vars(options).items() if k != "folder"},
        "bytes of replaced layers": report.after.bytes - rest,
        "ratio of bytes": 4 * entries / (report.after.bytes - rest),
        "ratio of parameters": entries / (report.after.params - (params - entries)),
        **quality_of(case),
        "cpu_seconds": None if continued else round(time.process_time() - began),
        "layers": {r.name: [r.topology, r.params, [round(e, 4) for e in r.local_errors]] for r in report.layers},
    }
    out = RESULTS / f"compress-{options.case}-full.json"
    rows = json.loads(out.read_text())["compress_full"] if out.exists() else []
    content = {
        "command": "python bench/compress/full.py CASE --bytes RATIO --steps STEPS --folder FOLDER",
        "machine": machine(),
        "compress_full": [*rows, row],
    }
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(row["quality"])


def precision_of(text: str) -> adtn.Precision:
    """Read a precision such as ``int4/32``."""
    format, _, group = text.partition("/")
    return adtn.Precision.from_json({"format": format, **({"group": int(group)} if group else {})})


if __name__ == "__main__":
    main()
