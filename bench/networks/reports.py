"""Report pages of whole networks, written to ``docs/guide/reports``: ``python bench/networks/reports.py vgg16``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import adtn
import torch
from data import load
from dense import NETWORKS
from run import load_weights
from train import as_input, augment

PAGES = Path(__file__).parents[2] / "docs" / "guide" / "reports"
BATCH = 128
CONFIGS: dict[str, dict[str, Any]] = {
    "vgg16": {
        "targets": ["fc1", "fc2"],
        "topology": adtn.MERA(bond=2, share=True),
        "leg": 4,
        "order": "interleaved",
        "base": adtn.IdentityBase(),
        "recipe": "finetune",
        "tune_steps": 60,
        "tune_lr": 3e-3,
        "rates": {"*.generated.*": 1.0, "fc*": 1.0, "*": 0.0},
    },
    "resnet20": {
        "targets": ["layer3.*"],
        "topology": adtn.Tucker(bond=20),
        "leg": 64,
        "steps": 60,
        "tune_steps": 90,
        "tune_lr": 2e-3,
        "distill": 0.5,
        "rates": {"*.generated.*": 1.0, "*": 0.2},
    },
}


def main() -> None:
    """Compress one network, and write its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=sorted(CONFIGS))
    parser.add_argument("--test", type=int, default=2000, help="number of test images")
    options = parser.parse_args()
    images = load("cifar10")
    model: Any = NETWORKS[options.network](images.classes)
    load_weights(model, options.network, "cifar10")
    config = adtn.Config(train="all", **CONFIGS[options.network])
    x, y = (torch.from_numpy(v) for v in (images.x_train, images.y_train))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)[: BATCH * config.tune_steps]
    data = [(as_input(augment(x[i], generator, 4, True), "cifar10"), y[i].long()) for i in order.split(BATCH)]
    x, y = (torch.from_numpy(v)[: options.test] for v in (images.x_test, images.y_test))
    test = [(as_input(a, "cifar10"), b.long()) for a, b in zip(x.split(250), y.split(250), strict=True)]
    report = adtn.compress(model, config, data=data, test=test, progress=lambda line: print(line, flush=True))
    print(report)
    PAGES.mkdir(parents=True, exist_ok=True)
    report.save(PAGES / f"{options.network}.html")


if __name__ == "__main__":
    main()
