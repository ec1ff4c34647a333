"""Train the dense networks: ``python bench/networks/train.py vgg16 --data cifar10 --epochs 12``.

Weights are written to the cache directory (``ADTN_CACHE``), and accuracies to ``bench/networks/results/dense``. An
interrupted training continues from a checkpoint that is at most about a minute old.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from adtn.bench import machine
from adtn.device import cache_dir
from data import Images, load
from dense import NETWORKS
from safetensors.torch import save_file
from torch import nn

RESULTS = Path(__file__).parent / "results"
_SMALL = 100_000  # parameters up to which weights are stored with the results, as other machines train other networks
# mean and standard deviation per channel; the external ResNets were trained with those of ImageNet
NORMALISATION = {"mnist": ((0.1307,), (0.3081,)), "cifar": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


def as_input(x: torch.Tensor, data: str) -> torch.Tensor:
    """Normalise uint8 images to float32."""
    constants = NORMALISATION["mnist" if data == "mnist" else "cifar"]
    mean, std = (torch.tensor(v, device=x.device).reshape(1, -1, 1, 1) for v in constants)
    return (x.float() / 255.0 - mean) / std


def augment(x: torch.Tensor, generator: torch.Generator, shift: int, flip: bool) -> torch.Tensor:
    """Shift each image by up to ``shift`` pixels, and mirror it or not."""
    n, _, height, width = x.shape
    padded = nn.functional.pad(x, (shift,) * 4)
    dy, dx = (torch.randint(0, 2 * shift + 1, (n, 1), generator=generator) for _ in range(2))
    rows = dy + torch.arange(height)
    columns = dx + torch.arange(width)
    if flip:
        mirrored = torch.rand((n, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    at, rows, columns = (v.to(x.device) for v in (torch.arange(n), rows, columns))
    return padded.permute(0, 2, 3, 1)[at[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor, data: str, half: bool) -> float:
    """Compute the accuracy in percent."""
    model.eval()
    correct = 0
    with torch.inference_mode():
        for at in range(0, len(x), 500):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
                guess = model(as_input(x[at : at + 500], data)).argmax(1)
            correct += int((guess == y[at : at + 500]).sum())
    return 100.0 * correct / len(x)


def weights_file(network: str, data: str) -> Path:
    """Return the path of the weights of a trained network."""
    return cache_dir() / "networks" / f"{network}-{data}.pt"


def train(network: str, images: Images, options: argparse.Namespace) -> dict[str, Any]:
    """Train by one-cycle SGD with Nesterov momentum on shifted (and mirrored) images, optionally small ones first."""
    torch.manual_seed(options.seed)
    data, half, device = images.name, options.bfloat16, options.device
    arrays = (images.x_train, images.y_train, images.x_test, images.y_test)
    x, y, x_test, y_test = (torch.from_numpy(v).to(device) for v in arrays)
    model = NETWORKS[network](images.classes).to(device, memory_format=torch.channels_last)
    if options.start:
        initial, trained = model.state_dict(), torch.load(weights_file(network, options.start), weights_only=True)
        model.load_state_dict(initial | {k: v for k, v in trained.items() if v.shape == initial[k].shape})
    per_epoch = len(x) // options.batch
    optimizer = torch.optim.SGD(
        model.parameters(), options.lr, 0.9, weight_decay=options.decay, nesterov=True, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.epochs * per_epoch, pct_start=0.25
    )
    path = weights_file(network, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = path.with_suffix(".checkpoint")
    history: list[dict[str, Any]] = []
    saved = time.monotonic()
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        history = state["history"]
    for epoch in range(len(history), options.epochs):
        generator = torch.Generator().manual_seed(1000 * options.seed + epoch)
        order = torch.randperm(len(x), generator=generator)
        side = next((s for until, s in options.sizes if epoch < until * options.epochs), 0)
        model.train()
        began, total = time.monotonic(), torch.zeros((), device=device)
        for step in range(per_epoch):
            at = order[step * options.batch : (step + 1) * options.batch].to(device)
            batch = as_input(augment(x[at], generator, options.shift, data != "mnist"), data)
            if side:
                batch = nn.functional.interpolate(batch, (side, side), mode="area")
            batch = batch.contiguous(memory_format=torch.channels_last)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
                logits = model(batch)
            loss = nn.functional.cross_entropy(logits.float(), y[at], label_smoothing=options.smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        score = accuracy(model, x_test, y_test, data, half) if not side else None
        history.append(
            {
                "epoch": epoch + 1,
                "side": side or x.shape[-1],
                "loss": float(total) / per_epoch,
                "accuracy": score,
                "seconds": time.monotonic() - began,
            }
        )
        print(json.dumps(history[-1]), flush=True)
        if time.monotonic() - saved < 60 and epoch + 1 < options.epochs:
            continue
        saved = time.monotonic()
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "history": history,
        }
        torch.save(state, checkpoint.with_suffix(".new"))
        os.replace(checkpoint.with_suffix(".new"), checkpoint)
    final = accuracy(model, x_test, y_test, data, half=False)
    state = {name: v.cpu().contiguous() for name, v in model.state_dict().items()}
    torch.save(state, path)
    if sum(v.numel() for v in state.values()) <= _SMALL:
        save_file(state, RESULTS / "dense" / f"{network}-{data}.safetensors")
    return {"network": network, "data": data, "accuracy": final, "history": history}


def _sizes(text: str) -> tuple[float, int]:
    until, _, side = text.partition(":")
    return float(until), int(side)


def main() -> None:
    """Train one network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--decay", type=float, default=5e-4)
    parser.add_argument("--smoothing", type=float, default=0.05)
    parser.add_argument("--shift", type=int, default=4)
    parser.add_argument("--sizes", type=_sizes, nargs="*", default=[], help="small images first, such as 0.3:16 0.6:24")
    parser.add_argument("--start", help="start with the weights of the same network that was trained on these data")
    parser.add_argument("--bfloat16", action="store_true", help="compute products in bfloat16")
    parser.add_argument("--device", default="cpu", help="device of PyTorch, such as cuda:0")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = train(options.network, load(options.data), options)
    command = " ".join(["python", "bench/networks/train.py", *sys.argv[1:]])
    out = RESULTS / "dense" / f"{options.network}-{options.data}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"command": command, "machine": machine(), **result}, indent=1) + "\n")
    print(f"{options.network} on {options.data}: {result['accuracy']:.2f} %")


if __name__ == "__main__":
    main()
