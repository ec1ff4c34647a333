"""The time of a training step of one layer: forward, and the gradients of its parameters and its input, 4096x4096.

Run as ``python bench/train_step.py``; writes ``bench/results/train-step.json``. The layers are compared with a dense
one, a low-rank pair of about as many parameters, and with the same networks contracted by cotengra's stored
expressions and differentiated by PyTorch, eagerly and compiled: with the input as one more tensor (without generating
the weight), or generating the weight first. One process per case. ``--on cuda:0`` compares on a GPU, where launches
dominate a step of few parameters, so there all methods are measured a second time as CUDA graphs
(``torch.cuda.make_graphed_callables``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn.bench import BenchCase, paired_seconds
from adtn.weight import with_input
from processes import rows_per_device, write_results
from stored import contract, expressions
from torch import nn

from adtn_backends.torch.layers import ADTNLinear

RESULTS = Path(__file__).parent / "results"
CASES = ("TTN 2", "TTN 4", "aTTN 4", "MERA 4", "MPO 8", "Tucker 4")
BATCHES = (16, 256)
Method = tuple[Callable[[torch.Tensor], torch.Tensor], list[torch.Tensor]]


def ours(case: BenchCase, compiled: bool = False) -> Method:
    """Make the library's layer, as models use it."""
    layer = ADTNLinear(case.generator(), bias=False).to(torch.get_default_device())
    params = list(layer.parameters())
    return (torch.compile(layer, fullgraph=True) if compiled else layer), params


def dense(case: BenchCase) -> Method:
    """Make an ordinary layer."""
    layer = nn.Linear(case.shape[1], case.shape[0], bias=False)
    return layer, [layer.weight]


def low_rank(case: BenchCase) -> Method:
    """Make two ordinary layers with as many parameters as the generator, at least of rank one."""
    n_out, n_in = case.shape
    rank = max(round(case.generator().num_params / (n_out + n_in)), 1)
    pair = nn.Sequential(nn.Linear(n_in, rank, bias=False), nn.Linear(rank, n_out, bias=False))
    return pair, list(pair.parameters())


def stored(case: BenchCase, batch: int, how: str, compiled: bool = False) -> Method:
    """Make a layer of stored contractions, differentiated by PyTorch; ``how`` is ``"input"`` or ``"weight"``."""
    generator = case.generator()
    layout, scale, segments = generator.layout, generator.scale, generator.segments
    if how == "input":
        segments = with_input(segments, layout, batch)
    params = {k: nn.Parameter(torch.tensor(np.array(x))) for k, x in generator.params.items()}
    frozen = {k: torch.tensor(np.asarray(x, np.float32)) for k, x in generator.constants().items()}
    contractions = expressions(segments)

    def run(x: torch.Tensor) -> torch.Tensor:
        arrays = {**params, **frozen, "x/input": x.reshape(batch, *layout.factors[1])}
        state = contract(segments, contractions, arrays, nn.functional.silu, "torch")
        if how == "input":
            return state.reshape(batch, -1) * scale
        return nn.functional.linear(x, layout.from_legs(state) * scale)

    run(torch.zeros(batch, case.shape[1]))  # autoray imports functions at first use, which compilers cannot trace
    return (torch.compile(run, fullgraph=True) if compiled else run), list(params.values())


def tensorly(case: BenchCase, implementation: str) -> Method:
    """Make the layer of tensorly-torch, for the two topologies that it supports."""
    import tltorch

    generator = case.generator()
    kind, rank = {"MPO 8": ("blocktt", 8), "Tucker 4": ("tucker", 4)}[case.name]
    outs, ins = generator.layout.factors
    order = len(ins) + len(outs)
    ranks = (1, *(rank,) * (len(ins) - 1), 1) if kind == "blocktt" else (rank,) * order
    layer = tltorch.FactorizedLinear(
        ins, outs, bias=False, factorization=kind, rank=ranks, implementation=implementation
    )
    return layer, list(layer.parameters())


class _Called(nn.Module):
    """A function of x and of parameters, as a module."""

    def __init__(self, run: Callable[[torch.Tensor], torch.Tensor], params: list[Any]) -> None:
        super().__init__()
        self.run, self.params = run, nn.ParameterList(params)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)


def recorded(make: Callable[[], Method], case: BenchCase, batch: int) -> Method:
    """Capture a method as two CUDA graphs, forward and backward."""
    layer, params = make()
    module = layer if isinstance(layer, nn.Module) else _Called(layer, params)
    sample = torch.zeros(batch, case.shape[1], requires_grad=True)
    return torch.cuda.make_graphed_callables(module, (sample,)), params  # pyright: ignore[reportReturnType]


def methods(case: BenchCase, batch: int) -> dict[str, Callable[[], Method]]:
    """Return all methods that are compared, by name."""
    by_name: dict[str, Callable[[], Method]] = {
        "dense": partial(dense, case),
        "low-rank pair": partial(low_rank, case),
        "adtn": partial(ours, case),
        "adtn, torch.compile": partial(ours, case, compiled=True),
        "cotengra, input": partial(stored, case, batch, "input"),
        "cotengra, input, torch.compile": partial(stored, case, batch, "input", compiled=True),
        "cotengra, weight": partial(stored, case, batch, "weight"),
    }
    if case.name in ("MPO 8", "Tucker 4"):
        for implementation in ("factorized", "reconstructed"):
            by_name[f"tensorly-torch, {implementation}"] = partial(tensorly, case, implementation)
    if torch.get_default_device().type == "cuda":
        eager = {name: make for name, make in by_name.items() if "torch.compile" not in name}
        by_name |= {f"{name}, recorded": partial(recorded, make, case, batch) for name, make in eager.items()}
    return by_name


def gradients(layer: Callable[..., Any], params: list[torch.Tensor], x: torch.Tensor, cotangent: torch.Tensor) -> Any:
    """Run a layer forward and backward."""
    grads = torch.autograd.grad(layer(x), [x, *params], cotangent)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return grads


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all methods on one topology."""
    name, n, seconds, skip = options.device, options.n, options.seconds, options.skip
    torch.set_default_device(options.on)
    torch.set_num_threads(options.threads)
    case = BenchCase(name, (n, n))
    rows: list[dict[str, Any]] = []
    for batch in options.batches:
        torch.manual_seed(0)
        torch.compiler.reset()
        x, cotangent = torch.randn(batch, n, requires_grad=True), torch.randn(batch, n)
        steps: dict[str, Callable[[], Any]] = {}
        results: dict[str, tuple[torch.Tensor, ...]] = {}
        failed: dict[str, str] = {}
        compared = {m: make for m, make in methods(case, batch).items() if not skip or skip not in m}
        for method, make in compared.items():
            try:
                steps[method] = partial(gradients, *make(), x, cotangent)
                results[method] = steps[method]()
            except Exception as error:  # a failed run is a result
                steps.pop(method, None)
                failed[method] = f"{type(error).__name__}: {error}".splitlines()[0]
        reference = results["adtn"][0]
        times = paired_seconds(steps, seconds)
        for method in compared:
            row: dict[str, Any] = {"case": name, "n": n, "batch": batch, "threads": options.threads, "method": method}
            if method in failed:
                rows.append({**row, "error": failed[method]})
                continue
            difference = float((results[method][0] - reference).norm() / reference.norm())
            same = method.startswith(("adtn", "cotengra"))
            rows.append({**row, "seconds": times[method], "input_gradient_difference": difference if same else None})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="", help="the case to measure in this process")
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--skip", default="", help="skip methods with this in their names, such as torch.compile")
    parser.add_argument("--on", default="cpu", help="cpu, or a CUDA device of PyTorch, such as cuda:0")
    parser.add_argument("--out", type=Path, default=RESULTS / "train-step.json")
    options = parser.parse_args()
    if options.device:
        print(json.dumps(measure(options)))
        return
    write_results(options.out, train_step=rows_per_device(options.cases))


if __name__ == "__main__":
    main()
