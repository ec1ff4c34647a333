"""Replace layers of the trained networks and train through what replaces them.

Run as ``python bench/networks/run.py vgg16-linear`` (or several cases, or ``all``). Every run is a row of
``bench/networks/results/<case>.json``; those that are there already are not repeated, failed ones are kept.
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
    """What the frozen part of a network makes of the training images, in several augmented copies.

    Iterating gives batches in an order of its own each time, one copy after the other: features, labels and the
    outputs of the dense layers.
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
    """In evaluation mode."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(part.float()) for part in x.split(1000)]).clone()


def loss_with(distill: float) -> Any:
    """Cross entropy, mixed with the divergence from the dense outputs."""

    def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x, y, dense = batch
        found = model(x)
        value = nn.functional.cross_entropy(found, y)
        if not distill:
            return value
        wanted = dense.log_softmax(-1)
        away = nn.functional.kl_div(found.log_softmax(-1), wanted, reduction="batchmean", log_target=True)
        return (1.0 - distill) * value + distill * away

    return loss


def features(
    prefix: nn.Sequential, images: torch.Tensor, data: str, seed: int | None, shift: int, device: str
) -> torch.Tensor:
    """In half precision; of images as they are when ``seed`` is none, else moved by up to ``shift`` pixels."""
    generator = torch.Generator().manual_seed(seed or 0)
    found: list[torch.Tensor] = []
    prefix.eval()
    with torch.inference_mode():
        for x in images.split(500):
            x = x.to(device)
            if seed is not None:
                x = augment(x, generator, shift, data != "mnist")
            x = as_input(x, data).contiguous(memory_format=torch.channels_last)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=len(prefix) > 0):
                found.append(prefix(x).to("cpu", torch.float16).contiguous())
    return torch.cat(found)


def cached_features(
    case: Mapping[str, Any], prefix: nn.Sequential, images: Images, device: str
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Computed once per trained network, cut, and number and shift of copies."""
    state = b"".join(v.numpy().tobytes() for v in prefix.state_dict().values())
    trained = hashlib.sha256(state).hexdigest()[:8]  # a network that was trained anew has other features
    name = f"{case['network']}-{case['data']}-{case['cut']}-{case['copies']}-{case['shift']}-{trained}"
    path = weights_file("features", name)
    if not path.exists():
        train, test = torch.from_numpy(images.x_train), torch.from_numpy(images.x_test)
        seeds = [None, *range(1, case["copies"])]
        prefix.to(device)
        shift = case["shift"]
        found = [features(prefix, train, images.name, seed, shift, device) for seed in seeds]
        torch.save({"train": found, "test": features(prefix, test, images.name, None, shift, device)}, path)
    kept = torch.load(path, weights_only=True, map_location=device)
    return kept["train"], kept["test"]


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """In percent."""
    return 100.0 * float((outputs(model, x).argmax(1) == y).float().mean())


def replace(model: nn.Sequential, case: Mapping[str, Any], method: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Put a method's layers into a network; per layer its sizes."""
    budgets: Mapping[str, int] = method.get("budget", case.get("budget", {}))
    layers: dict[str, Any] = {}
    if method.get("sorted"):
        for name in case["replaced"]:
            sorted_units(model, name)
    for name in case["replaced"]:
        dense: Any = model.get_submodule(name)
        own = {**method, **method.get("layers", {}).get(name, {})}
        entries = dense.weight.numel()
        most = entries // method["ratio"] if "ratio" in method else budgets.get(name)
        made, params, active = replacement(dense, own, most, seed)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, made)
        layers[name] = {"params": params, "active": active, "ratio": entries / params, "what": repr(made)[:200]}
    return layers


def run(
    case: Mapping[str, Any], method: Mapping[str, Any], seed: int, tail: nn.Sequential, data: Features, test: Any
) -> dict[str, Any]:
    """One training: the row."""
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
        capture=x_test.is_cuda,  # the same updates without Python between the kernels
        autocast=case.get("autocast"),
    )
    adapter = get_backend("torch").model(model, None)
    losses = adapter.tune(data, loss_with(case["distill"]), tuning, lambda step, value: None) if steps else []
    return {
        "layers": layers,
        "params": sum(one["params"] for one in layers.values()),
        "active": sum(one["active"] for one in layers.values()),
        "accuracy": accuracy(model, *test),
        "loss": float(np.mean(losses[-20:])) if losses else None,
        "steps": steps,
        "seconds": time.monotonic() - began,
    }


def read_case(name: str) -> dict[str, Any]:
    """A case file, with what is common to all."""
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
    """Those that are kept beside the results, or were trained here, or those that ``ADTN_DATA`` has.

    Raises
    ------
    ADTNError
        If there are none.
    """
    own = weights_file(network, data)
    kept = RESULTS / "dense" / f"{network}-{data}.safetensors"
    given = Path(os.environ.get("ADTN_DATA", "")) / "weights" / f"{network}_{data}.safetensors"
    found = next((path for path in (kept, own, given) if path.exists()), None)
    if found is None:
        raise ADTNError(f"Found no weights in {own}; run 'python bench/networks/train.py {network} --data {data}'.")
    if found == own:
        model.load_state_dict(torch.load(own, weights_only=True, map_location="cpu"))
    else:
        model.load_state_dict(load_file(found), strict=found != given)  # given ones have no counters of batches


@lru_cache(maxsize=1)
def prepared(name: str, device: str) -> tuple[Any, Any, Any]:
    """The layers from the cut on; features, dense outputs and labels to train on; features and labels to test on."""
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
    """The methods; where a case has ratios, those that can have several sizes once for each of them."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, method in case["methods"].items():
        if not case.get("ratios") or method.get("once"):
            found[name] = method
            continue
        for ratio in case["ratios"]:
            found[f"{name} {ratio}x"] = {**method, "ratio": ratio}
    return found


def distinct(case: Mapping[str, Any], tail: nn.Sequential, names: list[str]) -> list[str]:
    """Without the variants that are as large as the one at the ratio before: their method has nothing smaller."""
    kept: list[str] = []
    before: dict[str, int] = {}
    options = variants(case)
    for name in names:
        if "ratio" in options[name]:
            method = name.rpartition(" ")[0]
            layers = replace(copy.deepcopy(tail), case, {**options[name], "warm": 0}, 0)
            params = sum(one["params"] for one in layers.values())
            if params == before.get(method):
                continue
            before[method] = params
        kept.append(name)
    return kept


def run_row(name: str, method: str, seed: int, device: str) -> dict[str, Any]:
    """One row of a case, in a process of its own or in this one."""
    case = read_case(name)
    options = variants(case)[method]
    tail, train, test = prepared(name, device)
    try:
        row = run(case, options, seed, tail, Features(*train, case["batch"], seed), test)
    except Exception as error:  # a failed run is a result
        row = {"error": f"{type(error).__name__}: {error}"}
    return {"method": method, "seed": seed, "options": options, **row}


def run_case(name: str, only: list[str], seeds: list[int] | None, device: str, pool: Executor | None) -> None:
    """All methods and seeds that have no row yet."""
    case = read_case(name)
    out = RESULTS / f"{name}.json"
    content: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": []}
    done = {(row["method"], row["seed"]) for row in content["rows"]}
    methods = [n for n in variants(case) if not only or n in only or n.rpartition(" ")[0] in only]
    wanted = [(n, s) for s in seeds or case["seeds"] for n in methods if (n, s) not in done]
    if not wanted:
        return
    tail, _, test = prepared(name, device)  # also writes the features that the other processes read
    known = set(distinct(case, tail, methods))
    todo = [(name, n, s, device) for n, s in wanted if n in known]
    content |= {
        "command": f"python bench/networks/run.py {name}",
        "machine": {**machine(), "device": device_name(device)},
        "case": {k: v for k, v in case.items() if k != "methods"},
        "dense": accuracy(tail, *test),
    }
    print(f"{name}: dense {content['dense']:.2f} %", flush=True)
    rows = (run_row(*one) for one in todo)
    if pool is not None:
        rows = (job.result() for job in as_completed([pool.submit(run_row, *one) for one in todo]))
    for row in rows:
        content["rows"].append(row)
        write_atomic(out, (json.dumps(content, indent=1) + "\n").encode())
        told = (
            f"{row['accuracy']:.2f} %, {row['params']:,} parameters, {row['seconds']:.0f} s"
            if "accuracy" in row
            else row["error"]
        )
        print(f"{name} {row['method']} seed {row['seed']}: {told}", flush=True)


def device_name(device: str) -> str:
    """What hardware a PyTorch device is."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def main() -> None:
    """Run some cases, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", help="names of files in bench/networks/cases, or all")
    parser.add_argument("--methods", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--device", default="cpu", help="of PyTorch, such as cuda:0")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    names = sorted(p.stem for p in CASES.glob("*.toml")) if options.cases == ["all"] else options.cases
    threads = (max((os.cpu_count() or 1) // options.jobs, 1),)  # more than there are cores slow each other down
    workers = partial(ProcessPoolExecutor, options.jobs, get_context("spawn"), torch.set_num_threads, threads)
    with workers() if options.jobs > 1 else nullcontext() as pool:
        for name in names:
            run_case(name, options.methods, options.seeds, options.device, pool)


if __name__ == "__main__":
    main()
