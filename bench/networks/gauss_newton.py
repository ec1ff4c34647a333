"""A comparison of generalised Gauss-Newton on mini-batches with Adam: ``python bench/networks/gauss_newton.py``.

With logits z, their Jacobian J with respect to the parameters of the generator, and the softmax p, a step is::

    H = mean over images of Jᵀ (diag(p) - p pᵀ) J        (H + λ diag(H)) δ = -g

H and g are running means; J is computed by forward differentiation, one direction per parameter. All other parameters
are trained by Adam. Both optimizers have the same wall time, in turns. Writes
``bench/networks/results/tries/gauss-newton.json``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from adtn._atomic import write_atomic
from adtn.bench import machine
from methods import replacement
from run import Features, accuracy, prepared, read_case, variants
from torch import nn
from torch.func import functional_call, jvp, vmap
from train import RESULTS

from adtn_backends.torch.layers import GeneratedWeight

_CASE = "fc2-narrow"
_METHODS = ("mpo, small legs by meaning, 7 last 1000x", "nonlinear ttn, legs by meaning 100x")
_DAMPINGS = (0.1, 0.3, 1.0)
_EVERY = 5  # steps between two Jacobians
_AT_ONCE = 32  # directions that are differentiated together


def curvature(model: nn.Module, params: dict[str, nn.Parameter], x: torch.Tensor) -> torch.Tensor:
    """Compute H for one batch, in float64."""
    others = {k: v for k, v in itertools.chain(model.named_parameters(), model.named_buffers()) if k not in params}
    values = {k: p.detach() for k, p in params.items()}
    sizes = [p.numel() for p in params.values()]

    def logits(values: dict[str, torch.Tensor]) -> Any:
        return functional_call(model, {**{k: v.detach() for k, v in others.items()}, **values}, (x,))

    def along(direction: torch.Tensor) -> Any:
        parts = direction.split(sizes)
        tangent = {k: d.reshape(p.shape) for (k, p), d in zip(params.items(), parts, strict=True)}
        return jvp(logits, (values,), (tangent,))

    parts = [vmap(along, out_dims=(None, 0))(block) for block in torch.eye(sum(sizes)).split(_AT_ONCE)]
    p, jacobian = parts[0][0].softmax(-1), torch.cat([d for _, d in parts])
    weighted = p * (jacobian - (jacobian * p).sum(-1, keepdim=True))
    return (jacobian.flatten(1) @ weighted.flatten(1).T).double() / len(x)


def train(model: nn.Module, batches: Iterator[Any], steps: int, lr: float, damping: float | None) -> list[float]:
    """Train a model by Gauss-Newton, or by Adam alone if there is no damping; return the losses."""
    params: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        if isinstance(module, GeneratedWeight) and damping is not None:
            params |= {f"{name}.{k}": p for k, p in module.named_parameters(recurse=False)}
    others = [p for name, p in model.named_parameters() if name not in params]
    adam = torch.optim.Adam(others, lr=lr)
    sizes = [p.numel() for p in params.values()]
    matrix, mean_grad = torch.zeros(2 * (sum(sizes),), dtype=torch.float64), torch.zeros(sum(sizes)).double()
    total = 0.0  # the weight of the running mean so far
    losses: list[float] = []
    model.train()
    for step in range(steps):
        x, y, _ = next(batches)
        loss = nn.functional.cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        rate = 0.5 * (1.0 + math.cos(math.pi * step / steps))
        for group in adam.param_groups:
            group["lr"] = lr * rate
        if params:
            if step % _EVERY == 0:
                matrix, total = 0.95 * matrix + 0.05 * curvature(model, params, x), 0.95 * total + 0.05
            g = torch.cat([p.grad.flatten() for p in params.values() if p.grad is not None]).double()
            mean_grad = 0.9 * mean_grad + 0.1 * g
            unit = matrix.diagonal().clamp(min=1e-6 * float(matrix.diagonal().max())).sqrt()
            scaled = matrix / torch.outer(unit, unit)
            scaled.diagonal().add_(damping)
            change = -torch.linalg.solve(scaled, mean_grad / (1.0 - 0.9 ** (step + 1)) / unit * total) / unit
            with torch.no_grad():
                for p, d in zip(params.values(), (rate * change).float().split(sizes), strict=True):
                    p += d.reshape(p.shape)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        adam.step()
        if not math.isfinite(losses[-1]):
            break
    return losses


def main() -> None:
    """Compare the optimizers, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    case = read_case(_CASE)
    tail, features, test = prepared(case)
    rows: list[dict[str, Any]] = []
    for name, seed in itertools.product(_METHODS, range(options.seeds)):
        method = variants(case)[name]
        dense = tail.get_submodule("fc1")
        layer, params, _ = replacement(dense, method, dense.weight.numel() // method["ratio"], seed)
        start = copy.deepcopy(tail)
        start.fc1 = layer
        for damping in (None, *_DAMPINGS):
            batches = itertools.chain.from_iterable(itertools.repeat(Features(*features, case["batch"], seed)))
            torch.manual_seed(seed)
            for _ in range(2):  # the first training also plans
                began = time.perf_counter()
                train(copy.deepcopy(start), batches, 20, case["lr"], damping)
            steps = round(20 * options.seconds / (time.perf_counter() - began))
            model = copy.deepcopy(start)
            losses = train(model, batches, steps, case["lr"], damping)
            last = sum(losses[-50:]) / 50
            rows.append(
                {
                    "method": name,
                    "params": params,
                    "seed": seed,
                    "steps": steps,
                    "optimizer": "adam" if damping is None else f"gauss-newton, damping {damping:g}",
                    "loss": last if math.isfinite(last) else None,
                    "accuracy": accuracy(model, *test),
                }
            )
            print(rows[-1], flush=True)
    content = {
        "command": f"python bench/networks/gauss_newton.py --seconds {options.seconds:g} --seeds {options.seeds}",
        "machine": machine(),
        "case": _CASE,
        "rows": rows,
    }
    out: Path = RESULTS / "tries" / "gauss-newton.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
