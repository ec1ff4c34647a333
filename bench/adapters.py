"""Adapters at equal numbers of trained parameters: a small story model learns to continue Shakespeare.

Run as ``ADTN_DATA=... python bench/adapters.py``; writes ``bench/results/adapters.json``. Generated adapters of several
topologies beside LoRA, VeRA and LoKr of peft, on the same layers, with the same data, steps and schedule; the learning
rate of each is the best of three, by the validation loss of seed 0.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from processes import write_results

sys.path.insert(0, str(Path(__file__).parent / "networks"))
from stories import Tokens, stories_model, weights_folder

RESULTS = Path(__file__).parent / "results"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RATES = (1e-3, 4e-3, 1.6e-2)
LENGTH, BATCH = 128, 8


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens to train on, and to judge by."""
    folder = weights_folder()
    text = (folder.parent / "text" / "tinyshakespeare_input.txt").read_text()
    ids = torch.tensor(Tokens(folder / "tok512.bin").encode(text))
    rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    cut = int(0.9 * len(rows))
    return rows[:cut], rows[cut : cut + 64]


def adapted(dense: Any, method: str, size: Any, seed: int) -> tuple[Any, list[torch.nn.Parameter]]:
    """A copy of the model with an adapter, and what is trained of it."""
    import peft

    from adtn_backends.peft_layers import GeneratedLoraConfig

    torch.manual_seed(seed)
    targets = list(TARGETS)
    if method == "lora":
        config: Any = peft.LoraConfig(target_modules=targets[: size["layers"]], r=size["r"], lora_alpha=2 * size["r"])
    elif method == "vera":
        config = peft.VeraConfig(target_modules=targets[: size["layers"]], r=size["r"], projection_prng_key=seed)
    elif method == "lokr":
        config = peft.LoKrConfig(
            target_modules=targets, r=size["r"], alpha=size["r"], decompose_factor=size["factor"], init_weights=True
        )
    else:
        topology = {"name": method.removeprefix("linear "), "bond": size["bond"]}
        if method.startswith("linear"):
            topology["activation"] = "identity"
        config = GeneratedLoraConfig(target_modules=targets, generated={"topology": topology, "leg": 8, "seed": seed})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(copy.deepcopy(dense), config)
    return model, [p for p in model.parameters() if p.requires_grad]


# sizes near 5,000, 10,000 and 20,000 numbers; what a method really has is in the results
SIZES: dict[str, list[dict[str, int]]] = {
    "ttn": [{"bond": 2}, {"bond": 4}, {"bond": 6}],
    "linear ttn": [{"bond": 2}, {"bond": 4}, {"bond": 6}],
    "mpo": [{"bond": 1}, {"bond": 2}, {"bond": 4}],
    "lora": [{"r": 1, "layers": 7}, {"r": 2, "layers": 7}, {"r": 4, "layers": 7}],
    "vera": [{"r": 64, "layers": 7}, {"r": 128, "layers": 7}, {"r": 256, "layers": 7}],
    "lokr": [{"r": 1, "factor": 8}, {"r": 2, "factor": 8}, {"r": 4, "factor": 8}],
}


def batches(rows: torch.Tensor, steps: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield rows[torch.randint(0, len(rows), (BATCH,), generator=generator)]


def loss_on(model: Any, rows: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return math.fsum(float(model(input_ids=x, labels=x).loss) for x in rows.split(32)) / math.ceil(len(rows) / 32)


def run(dense: Any, method: str, size: Any, rate: float, seed: int, steps: int, data: Any) -> dict[str, Any]:
    """One training."""
    train, valid = data
    model, trained = adapted(dense, method, size, seed)
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for x in batches(train, steps, seed):
        loss = model(input_ids=x, labels=x).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    return {"method": method, "size": size, "params": sum(p.numel() for p in trained), "rate": rate, "seed": seed,
            "steps": steps, "loss": loss_on(model, valid)}  # fmt: skip


def main() -> None:
    """All methods, sizes and seeds; rows that are there are not repeated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "adapters.json")
    options = parser.parse_args()
    dense, data = stories_model(weights_folder() / "stories260K.bin"), texts()
    content: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"adapters": []}
    rows: list[dict[str, Any]] = content["adapters"]
    before = loss_on(dense, data[1])
    for k in range(3):
        for method, sizes in SIZES.items():
            size = sizes[k]
            for seed in range(options.seeds):
                own = [r for r in rows if (r["method"], r["size"]) == (method, size)]
                tried = [r for r in own if r["seed"] == 0]
                rates = RATES if seed == 0 else (min(tried, key=lambda r: r["loss"])["rate"],)
                for rate in rates:
                    if any((r["seed"], r["rate"]) == (seed, rate) for r in own):
                        continue
                    rows.append(run(dense, method, size, rate, seed, options.steps, data))
                    print(rows[-1], flush=True)
                    write_results(options.out, dense_loss=before, adapters=rows)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
