"""A step of a fit to a layer's outputs, compared with peers: ``python bench/output_fits.py [--threads 1] [--n 1024]``.

Every method computes the loss ``tr (W - T) C (W - T)ᵀ``, C being the second moment of the inputs, and all gradients.
Peers are stored cotengra expressions with PyTorch's differentiation, eagerly and compiled: of the weight, and of the
closed network ``tr W C Wᵀ`` with ``T C`` projected on the network, as adtn does. Results are checked to agree.
Writes ``bench/results/output-fits.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import adtn
import cotengra as ctg
import numpy as np
import torch
from adtn.backends import check_device, get_backend
from adtn.bench import paired_seconds
from adtn.optim._loss import plan_loss
from adtn.optim._options import FitOptions
from processes import write_results
from stored import contract, expressions

OUT = Path(__file__).parent / "results" / "output-fits.json"
TOPOLOGIES: dict[str, adtn.Topology] = {
    "low rank 16": adtn.LowRank(bond=16),
    "MPO 8": adtn.MPO(bond=8),
    "MPO 32": adtn.MPO(bond=32),
    "TTN 8": adtn.TTN(bond=8, activation=None),
    "TTN 4, SiLU": adtn.TTN(bond=4),
    "MERA 4": adtn.MERA(bond=4, activation=None),
}
Step = Callable[[], tuple[float, dict[str, np.ndarray]]]


class Problem:
    """A generator with a target and a second moment."""

    def __init__(self, topology: adtn.Topology, n: int) -> None:
        rng = np.random.default_rng(0)
        self.target = rng.standard_normal((n, n)).astype(np.float32)
        x = rng.standard_normal((2 * n, n)) * np.geomspace(1.0, 0.1, n)
        self.objective = adtn.DataAwareReconstruction(self.target, x.T @ x / (2 * n))
        self.generator = adtn.Generator((n, n), topology, scale=self.target)
        second = self.objective.second_moment
        power = np.sum((self.target @ second) * self.target)
        self.moment = (second / power).astype(np.float32)


def ours(problem: Problem, device: str, mode: Any = None) -> Step:
    """Make the step of :func:`adtn.fit`, in the mode that the scheduler chooses or in a given one."""
    options = FitOptions(device=device, dtype="float32", mode=mode)
    backend, where = check_device(device, "float32")
    loss = plan_loss(problem.generator, problem.objective, backend, where, options)
    params = {k: backend.asarray(x, where, "float32") for k, x in problem.generator.params.items()}

    def step() -> tuple[float, dict[str, np.ndarray]]:
        value, grads = loss(params, ())
        return float(value), {k: backend.to_numpy(g) for k, g in grads.items()}

    return step


def peer(problem: Problem, how: str, compiled: bool = False) -> Step:
    """Make a step of stored expressions, of the weight or of the closed network."""
    gen = problem.generator
    segments, layout, scale = gen.segments, gen.layout, gen.scale
    head, last = segments[:-1], segments[-1]
    if how == "projected" and last.activation != "identity":
        raise ValueError("an activation follows the last segment")
    params = {k: torch.tensor(np.array(x)).requires_grad_() for k, x in gen.params.items()}
    moment, target = torch.tensor(problem.moment), torch.tensor(problem.target)
    weighted = target @ moment
    silu = torch.nn.functional.silu
    stored = expressions(segments)
    inner = expressions(head)
    columns = [i for (axis, _), i in sorted(zip(layout.leg_axes, last.outputs, strict=True)) if axis]
    closed, overlap = _closed(gen, columns)
    legs = torch.tensor(np.ascontiguousarray(layout.to_legs(weighted.numpy())))
    both = moment.reshape([layout.dims[last.outputs.index(i)] for i in columns] * 2)

    def loss() -> torch.Tensor:
        if how == "weight":
            away = layout.from_legs(contract(segments, stored, params, silu, "torch")) * scale - target
            return ((away @ moment) * away).sum()
        state = [contract(head, inner, params, silu, "torch")] if head else []
        operands = [*state, *(params[core.param] for core in last.cores)]
        square = closed(*operands, *operands, both, backend="torch") * scale**2
        return square - 2.0 * scale * overlap(*operands, legs, backend="torch") + 1.0

    evaluate = torch.compile(loss, fullgraph=True) if compiled else loss

    def step() -> tuple[float, dict[str, np.ndarray]]:
        value = evaluate()
        grads = torch.autograd.grad(value, list(params.values()))
        return value.item(), {k: g.numpy() for k, g in zip(params, grads, strict=True)}

    loss()  # autoray imports functions at first use, which compilers cannot trace
    return step


def _closed(gen: adtn.Generator, columns: list[str]) -> tuple[Any, Any]:
    """Return expressions of ``tr W C Wᵀ`` and of the overlap with a target, of the last segment."""
    last = gen.segments[-1]
    sizes = {i: n for s in gen.segments for core in s.cores for i, n in zip(core.inds, core.shape, strict=True)}
    terms, shared = list(last.terms), set(last.outputs) - set(columns)
    copies = [tuple(i if i in shared else f"{i}/copy" for i in term) for term in terms]
    both = (*columns, *(f"{i}/copy" for i in columns))
    sizes |= {f"{i}/copy": n for i, n in sizes.items()}

    def expression(inputs: list[Any]) -> Any:
        shapes = [tuple(sizes[i] for i in term) for term in inputs]
        return ctg.array_contract_expression(inputs, (), shapes=shapes, optimize=ctg.AutoOptimizer(parallel=False))

    return expression([*terms, *copies, both]), expression([*terms, last.outputs])


def measure(name: str, n: int, seconds: float) -> list[dict[str, Any]]:
    """Measure all methods on one topology."""
    torch.compiler.reset()
    problem = Problem(TOPOLOGIES[name], n)
    methods: dict[str, Callable[[], Step]] = {
        "adtn, numpy:cpu": partial(ours, problem, "numpy:cpu"),
        "adtn, torch:cpu": partial(ours, problem, "torch:cpu"),
        "adtn, torch:cpu, with the weight": partial(ours, problem, "torch:cpu", "materialise"),
    }
    for how in ("weight", "projected"):
        methods[f"cotengra, {how}"] = partial(peer, problem, how)
        methods[f"cotengra, {how}, torch.compile"] = partial(peer, problem, how, compiled=True)
    steps: dict[str, Step] = {}
    rows: list[dict[str, Any]] = []
    for method, make in methods.items():
        try:
            step = make()
            step()
            steps[method] = step
        except Exception as error:  # a failed run is a result
            rows.append({"case": name, "method": method, "error": f"{type(error).__name__}: {error}".splitlines()[0]})
    results = {method: step() for method, step in steps.items()}
    want, grads = results["adtn, torch:cpu, with the weight"]
    times = paired_seconds(steps, seconds)
    for method, (loss, own) in results.items():
        apart = max(float(np.linalg.norm(own[k] - g) / np.linalg.norm(g)) for k, g in grads.items())
        rows.append(
            {
                "case": name,
                "n": n,
                "threads": torch.get_num_threads(),
                "method": method,
                "seconds": times[method],
                "difference": max(apart, abs(loss - want) / abs(want)),
            }
        )
    return rows


def main() -> None:
    """Measure all topologies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(TOPOLOGIES))
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    get_backend("torch")
    rows = [row for name in options.cases for row in measure(name, options.n, options.seconds)]
    for row in rows:
        print(row)
    write_results(options.out, output_fits=rows)


if __name__ == "__main__":
    main()
