"""A comparison of adapters with equal numbers of trained parameters: a story model learns to continue Shakespeare.

Run as ``ADTN_DATA=... python bench/adapters.py``; writes ``bench/results/adapters.json``. Generated adapters of several
topologies are compared with LoRA, VeRA and LoKr of peft, with the same data, steps and schedule. Each is as large as a
budget allows, and has the learning rate with the lowest validation loss for seed 0; both neighbouring rates are worse.
"""

from __future__ import annotations

import argparse
import copy
import itertools
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
TARGETS = ("q_proj", "v_proj", "o_proj", "k_proj", "gate_proj", "up_proj", "down_proj")
RATES = (4e-3, 1.6e-2, 6.4e-2)
BUDGETS = (3_100, 6_000, 24_000)
LENGTH, BATCH = 128, 8
_DIVERGED = 100.0  # the loss that is stored instead of NaN or infinity


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of tokens for training, and for validation."""
    folder = weights_folder()
    text = (folder.parent / "text" / "tinyshakespeare_input.txt").read_text()
    ids = torch.tensor(Tokens(folder / "tok512.bin").encode(text))
    rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    cut = int(0.9 * len(rows))
    return rows[:cut], rows[cut : cut + 64]


def adapted(dense: Any, method: str, size: Any, seed: int) -> tuple[Any, list[torch.nn.Parameter]]:
    """Copy the model with an adapter, and return it with its trained parameters."""
    import peft

    from adtn_backends.torch.peft import GeneratedLoraConfig

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
        config = GeneratedLoraConfig(
            target_modules=targets, generated={"topology": topology, "leg": size["leg"], "seed": seed}
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(copy.deepcopy(dense), config)
    return model, [p for p in model.parameters() if p.requires_grad]


# in order of preference where two sizes have equally many parameters
SIZES: dict[str, list[dict[str, int]]] = {
    "ttn": [{"bond": b, "leg": leg} for b in range(8, 1, -1) for leg in (8, 4, 16)],
    "linear ttn": [{"bond": b, "leg": leg} for b in range(8, 1, -1) for leg in (8, 4, 16)],
    "mpo": [{"bond": b, "leg": leg} for b in range(8, 0, -1) for leg in (8, 4)],
    "lora": [{"r": r, "layers": n} for n in (7, 6, 5, 4, 3) for r in (4, 3, 2, 1)],
    "vera": [{"r": r, "layers": n} for n in (7, 6) for r in (600, 512, 384, 256, 160, 80, 64, 32, 16, 8)],
    "lokr": [{"r": r, "factor": f} for f in (8, 4, 16, 2) for r in (24, 16, 12, 8, 6, 4, 3, 2, 1)],
}


def sizes_within(dense: Any, method: str) -> dict[int, dict[str, int]]:
    """Find the size with the most parameters that every budget allows."""
    largest: dict[int, tuple[int, dict[str, int]]] = {}
    for size in SIZES[method]:
        count = sum(p.numel() for p in adapted(dense, method, size, 0)[1])
        for budget in BUDGETS:
            if largest.get(budget, (0,))[0] < count <= budget:
                largest[budget] = (count, size)
    return {budget: size for budget, (_, size) in largest.items()}


def batches(rows: torch.Tensor, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Draw random batches."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield rows[torch.randint(0, len(rows), (BATCH,), generator=generator)]


def loss_on(model: Any, rows: torch.Tensor) -> float:
    """Compute the mean loss of a model."""
    model.eval()
    with torch.no_grad():
        return math.fsum(float(model(input_ids=x, labels=x).loss) for x in rows.split(32)) / math.ceil(len(rows) / 32)


def run(dense: Any, method: str, size: Any, rate: float, seed: int, steps: int, data: Any) -> dict[str, Any]:
    """Train one adapter, and return its row of the results."""
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
    loss = loss_on(model, valid)
    return {
        "method": method,
        "size": size,
        "params": sum(p.numel() for p in trained),
        "rate": rate,
        "seed": seed,
        "steps": steps,
        "loss": loss if math.isfinite(loss) else _DIVERGED,
    }


def best_rate(tries: dict[float, float]) -> tuple[float, bool]:
    """Return the rate with the lowest loss, and whether rates on both sides of it were tried."""
    best = min(tries, key=lambda rate: tries[rate])
    return best, min(tries) < best < max(tries)


def main() -> None:
    """Run all methods, budgets and seeds that have no row in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "adapters.json")
    options = parser.parse_args()
    dense, data = stories_model(weights_folder() / "stories260K.bin"), texts()
    content: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"adapters": []}
    rows: list[dict[str, Any]] = content["adapters"]
    before = loss_on(dense, data[1])

    def losses(method: str, size: Any, seed: int) -> dict[float, float]:
        return {r["rate"]: r["loss"] for r in rows if (r["method"], r["size"], r["seed"]) == (method, size, seed)}

    def add(budget: int, method: str, size: Any, rate: float, seed: int) -> None:
        if rate not in losses(method, size, seed):
            rows.append({"budget": budget, **run(dense, method, size, rate, seed, options.steps, data)})
            print(rows[-1], flush=True)
            write_results(options.out, dense_loss=before, adapters=rows)

    sizes = {method: sizes_within(dense, method) for method in SIZES}
    for budget, method in itertools.product(BUDGETS, SIZES):
        size = sizes[method].get(budget)
        if size is None:
            continue
        for rate in RATES:
            add(budget, method, size, rate, 0)
        best, inside = best_rate(losses(method, size, 0))
        while not inside and len(losses(method, size, 0)) < 6:
            add(budget, method, size, best * 4 if best > RATES[0] else best / 4, 0)
            best, inside = best_rate(losses(method, size, 0))
        for seed in range(1, options.seeds):
            add(budget, method, size, best, seed)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
