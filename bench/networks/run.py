"""Replace layers of the trained networks, and train the replacements by the loss of the network.

Run as ``python bench/networks/run.py vgg16-linear`` (or several cases, or ``all``). Every run is a row of
``bench/networks/results/<case>.json``; runs that have a row are not repeated, even if they failed.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import time
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn._atomic import write_atomic
from adtn.backends import get_backend
from adtn.bench import machine
from adtn.compression import Tuning
from adtn.errors import ADTNError
from data import Images, load
from dense import NETWORKS
from methods import replacement, sorted_units
from safetensors.torch import load_file
from torch import nn
from train import RESULTS, as_input, augment, weights_file

CASES = Path(__file__).parent / "cases"


class Features:
    """The outputs of the frozen part of a network for the training images, in several augmented copies.

    Iteration yields batches of features, labels and outputs of the dense layers, one copy after the other, in a new
    random order each time.
    """

    def __init__(
        self, copies: list[torch.Tensor], outputs: list[torch.Tensor], labels: torch.Tensor, batch: int, seed: int
    ) -> None:
        self.copies, self.outputs, self.labels, self.batch = copies, outputs, labels, batch
        self.order = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for x, z in zip(self.copies, self.outputs, strict=True):
            for at in torch.randperm(len(x), generator=self.order).to(x.device).split(self.batch):
                if len(at) == self.batch:
                    yield x[at].float(), self.labels[at], z[at]


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Compute the outputs of a model in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(part.float()) for part in x.split(1000)]).clone()


def loss_with(distill: float) -> Any:
    """Make a loss of cross entropy, mixed with the divergence from the dense outputs."""

    def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x, y, dense = batch
        logits = model(x)
        value = nn.functional.cross_entropy(logits, y)
        if not distill:
            return value
        target = dense.log_softmax(-1)
        divergence = nn.functional.kl_div(logits.log_softmax(-1), target, reduction="batchmean", log_target=True)
        return (1.0 - distill) * value + distill * divergence

    return loss


def features(
    prefix: nn.Sequential, images: torch.Tensor, data: str, seed: int | None, shift: int, device: str
) -> torch.Tensor:
    """Compute features in half precision; images are augmented by up to ``shift`` pixels unless ``seed`` is none."""
    generator = torch.Generator().manual_seed(seed or 0)
    parts: list[torch.Tensor] = []
    prefix.eval()
    with torch.inference_mode():
        for x in images.split(500):
            x = x.to(device)
            if seed is not None:
                x = augment(x, generator, shift, data != "mnist")
            x = as_input(x, data).contiguous(memory_format=torch.channels_last)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=len(prefix) > 0):
                parts.append(prefix(x).to("cpu", torch.float16).contiguous())
    return torch.cat(parts)


def cached_features(
    case: Mapping[str, Any], prefix: nn.Sequential, images: Images, device: str
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Compute features once per trained network, cut, and number and shift of copies, and cache them."""
    state = b"".join(v.numpy().tobytes() for v in prefix.state_dict().values())
    digest = hashlib.sha256(state).hexdigest()[:8]  # a network that is trained again has other features
    name = f"{case['network']}-{case['data']}-{case['cut']}-{case['copies']}-{case['shift']}-{digest}"
    path = weights_file("features", name)
    if not path.exists():
        train, test = torch.from_numpy(images.x_train), torch.from_numpy(images.x_test)
        seeds = [None, *range(1, case["copies"])]
        prefix.to(device)
        shift = case["shift"]
        copies = [features(prefix, train, images.name, seed, shift, device) for seed in seeds]
        torch.save({"train": copies, "test": features(prefix, test, images.name, None, shift, device)}, path)
    cached = torch.load(path, weights_only=True, map_location=device)
    return cached["train"], cached["test"]


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Compute the accuracy in percent."""
    return 100.0 * float((outputs(model, x).argmax(1) == y).float().mean())


def replace(model: nn.Sequential, case: Mapping[str, Any], method: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Replace layers of a network by those of a method, and return their sizes by layer."""
    budgets: Mapping[str, int] = method.get("budget", case.get("budget", {}))
    layers: dict[str, Any] = {}
    if method.get("sorted"):
        for name in case["replaced"]:
            sorted_units(model, name)
    for name in case["replaced"]:
        dense: Any = model.get_submodule(name)
        options = {**method, **method.get("layers", {}).get(name, {})}
        entries = dense.weight.numel()
        most = entries // method["ratio"] if "ratio" in method else budgets.get(name)
        layer, params, active = replacement(dense, options, most, seed)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, layer)
        layers[name] = {"params": params, "active": active, "ratio": entries / params, "what": repr(layer)[:200]}
    return layers


def run(
    case: Mapping[str, Any], method: Mapping[str, Any], seed: int, tail: nn.Sequential, data: Features, test: Any
) -> dict[str, Any]:
    """Train once, and return the row of results."""
    model = copy.deepcopy(tail)
    layers = replace(model, case, method, seed)
    x_test, _ = test
    model.to(x_test.device)
    began = time.monotonic()
    torch.manual_seed(seed)
    steps = method.get("steps", case["steps"])
    tuning = Tuning(
        steps=steps,
        lr=method.get("lr", case["lr"]),
        train="all",
        rates={**case.get("rates", {}), **method.get("rates", {})},
        seed=seed,
        optimizer=method.get("optimizer", "adam"),
        dropout=method.get("dropout", case.get("dropout")),
        capture=x_test.is_cuda,  # the same steps without Python between the kernels
        autocast=case.get("autocast"),
    )
    adapter = get_backend("torch").model(model, None)
    losses = adapter.tune(data, loss_with(case["distill"]), tuning, lambda step, value: None) if steps else []
    return {
        "layers": layers,
        "params": sum(layer["params"] for layer in layers.values()),
        "active": sum(layer["active"] for layer in layers.values()),
        "accuracy": accuracy(model, *test),
        "loss": float(np.mean(losses[-20:])) if losses else None,
        "steps": steps,
        "seconds": time.monotonic() - began,
    }


def read_case(name: str) -> dict[str, Any]:
    """Read a case file, and add defaults."""
    case = tomllib.loads((CASES / f"{name}.toml").read_text())
    return {
        "copies": 2,
        "shift": 4,
        "batch": 128,
        "steps": 400,
        "lr": 5e-3,
        "distill": 0.0,
        "seeds": [0, 1, 2],
        "name": name,
        **case,
    }


def load_weights(model: nn.Module, network: str, data: str) -> None:
    """Load weights that are stored with the results, were trained on this machine, or are in ``ADTN_DATA``.

    Raises
    ------
    ADTNError
        If there are no such weights.
    """
    trained = weights_file(network, data)
    stored = RESULTS / "dense" / f"{network}-{data}.safetensors"
    external = Path(os.environ.get("ADTN_DATA", "")) / "weights" / f"{network}_{data}.safetensors"
    path = next((path for path in (stored, trained, external) if path.exists()), None)
    if path is None:
        raise ADTNError(f"Found no weights in {trained}; run 'python bench/networks/train.py {network} --data {data}'.")
    if path == trained:
        model.load_state_dict(torch.load(trained, weights_only=True, map_location="cpu"))
    else:
        model.load_state_dict(load_file(path), strict=path != external)  # external ones do not count batches


@lru_cache(maxsize=1)
def prepared(name: str, device: str) -> tuple[Any, Any, Any]:
    """Prepare the layers from the cut on, with features, dense outputs and labels for training, and test data."""
    case = read_case(name)
    images = load(case["data"])
    network: Any = NETWORKS[case["network"]](images.classes)
    load_weights(network, case["network"], case["data"])
    prefix, tail = network.cut(case["cut"])
    tail.to(device)
    x_train, x_test = cached_features(case, prefix, images, device)
    y_train, y_test = (torch.from_numpy(y).to(device) for y in (images.y_train, images.y_test))
    return tail, (x_train, [outputs(tail, x) for x in x_train], y_train), (x_test, y_test)


def variants(case: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the methods by name; if a case has ratios, methods that can have several sizes once per ratio."""
    by_name: dict[str, Mapping[str, Any]] = {}
    for name, method in case["methods"].items():
        if not case.get("ratios") or method.get("once"):
            by_name[name] = method
            continue
        for ratio in case["ratios"]:
            by_name[f"{name} {ratio}x"] = {**method, "ratio": ratio}
    return by_name


def distinct(case: Mapping[str, Any], tail: nn.Sequential, names: list[str]) -> list[str]:
    """Exclude variants that are as large as the one at the previous ratio, as their method has no smaller size."""
    chosen: list[str] = []
    before: dict[str, int] = {}
    options = variants(case)
    for name in names:
        if "ratio" in options[name]:
            method = name.rpartition(" ")[0]
            layers = replace(copy.deepcopy(tail), case, {**options[name], "warm": 0}, 0)
            params = sum(layer["params"] for layer in layers.values())
            if params == before.get(method):
                continue
            before[method] = params
        chosen.append(name)
    return chosen


def run_row(name: str, method: str, seed: int, device: str) -> dict[str, Any]:
    """Run one row of a case, in this process or in a worker."""
    case = read_case(name)
    options = variants(case)[method]
    tail, train, test = prepared(name, device)
    try:
        row = run(case, options, seed, tail, Features(*train, case["batch"], seed), test)
    except Exception as error:  # a failed run is a result
        row = {"error": f"{type(error).__name__}: {error}"}
    return {"method": method, "seed": seed, "options": options, **row}


def run_case(name: str, only: list[str], seeds: list[int] | None, device: str, pool: Executor | None) -> None:
    """Run all methods and seeds of a case that have no row yet."""
    case = read_case(name)
    out = RESULTS / f"{name}.json"
    content: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": []}
    done = {(row["method"], row["seed"]) for row in content["rows"]}
    methods = [n for n in variants(case) if not only or n in only or n.rpartition(" ")[0] in only]
    missing = [(n, s) for s in seeds or case["seeds"] for n in methods if (n, s) not in done]
    if not missing:
        return
    tail, _, test = prepared(name, device)  # also writes the features that workers read
    chosen = set(distinct(case, tail, methods))
    jobs = [(name, n, s, device) for n, s in missing if n in chosen]
    content |= {
        "command": f"python bench/networks/run.py {name}",
        "machine": {**machine(), "device": device_name(device)},
        "case": {k: v for k, v in case.items() if k != "methods"},
        "dense": accuracy(tail, *test),
    }
    print(f"{name}: dense {content['dense']:.2f} %", flush=True)
    rows = (run_row(*job) for job in jobs)
    if pool is not None:
        rows = (future.result() for future in as_completed([pool.submit(run_row, *job) for job in jobs]))
    for row in rows:
        content["rows"].append(row)
        write_atomic(out, (json.dumps(content, indent=1) + "\n").encode())
        summary = (
            f"{row['accuracy']:.2f} %, {row['params']:,} parameters, {row['seconds']:.0f} s"
            if "accuracy" in row
            else row["error"]
        )
        print(f"{name} {row['method']} seed {row['seed']}: {summary}", flush=True)


def device_name(device: str) -> str:
    """Return the name of the hardware of a PyTorch device."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def main() -> None:
    """Run some cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", help="names of files in bench/networks/cases, or all")
    parser.add_argument("--methods", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--device", default="cpu", help="device of PyTorch, such as cuda:0")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    options = parser.parse_args()
    names = sorted(p.stem for p in CASES.glob("*.toml")) if options.cases == ["all"] else options.cases
    threads = (max((os.cpu_count() or 1) // options.jobs, 1),)  # more threads than cores slow each other down
    workers = partial(ProcessPoolExecutor, options.jobs, get_context("spawn"), torch.set_num_threads, threads)
    with workers() if options.jobs > 1 else nullcontext() as pool:
        for name in names:
            run_case(name, options.methods, options.seeds, options.device, pool)


if __name__ == "__main__":
    main()
