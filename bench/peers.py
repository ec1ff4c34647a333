"""A comparison of a fit step with peers, for the same generator and parameters; outputs are checked to agree.

Run as ``python bench/peers.py``; writes ``bench/results/peers.json``. Every method computes the loss and all gradients
of a reconstruction. Times are medians, measured in turns in one process. Peak memory is that of one step in a separate
process, above the memory with target and parameters. ``--on cuda:0`` compares on a GPU, without peaks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import adtn
import cotengra as ctg
import numpy as np
from adtn.bench import BenchCase, Work, paired_seconds, peak_bytes
from processes import write_results
from stored import contract, expressions

RESULTS = Path(__file__).parent / "results"
CASES = ("TTN 2", "TTN 4", "MERA 4", "aTTN 4", "MPO 8", "Tucker 4")
Step = Callable[[], tuple[float, dict[str, np.ndarray]]]


class Problem:
    """A generator with a target, which is the same for every method."""

    def __init__(self, name: str, n: int) -> None:
        self.topology = name
        self.generator = BenchCase(name, (n, n)).generator()
        self.target = Work(generator=self.generator, task="fit", device="numpy:cpu").operand
        self.segments = self.generator.segments
        self.layout = self.generator.layout
        self.scale = self.generator.scale
        self.square = float(np.sum(np.square(self.target, dtype=np.float64)))

    def loss(
        self, params: dict[str, Any], target: Any, stored: list[Any], silu: Callable[[Any], Any], backend: str
    ) -> Any:
        """Compute the reconstruction error of the weight, with its axes split into legs."""
        state = contract(self.segments, stored, params, silu, backend)
        residual = state * self.scale - target
        return (residual * residual).sum()

    def target_in_legs(self) -> np.ndarray:
        """Return the target, with its axes split into legs."""
        return np.ascontiguousarray(self.layout.to_legs(self.target))


def ours(problem: Problem, device: str, mode: str | None = None) -> Step:
    """Make the library's step as in ``adtn.fit``, in the mode that the scheduler chooses or in a given one."""
    work = Work(generator=problem.generator, task="fit", device=device, mode=mode)
    convert = adtn.backends.get_backend(device.partition(":")[0]).to_numpy  # type: ignore[attr-defined]
    run = work.run  # from here on, target and parameters are in memory

    def step() -> tuple[float, dict[str, np.ndarray]]:
        loss, grads = run()
        square = problem.square if work.plan.mode == "factored" else 0.0  # not part of a step
        # the adjoint of a squared distance is passed without its factor of two
        return float(loss) + square, {k: 2.0 * convert(g) for k, g in grads.items()}

    return step


def with_torch(problem: Problem, how: str) -> Step:
    """Make a step of stored expressions, compiled or not, or of quimb, with torch autograd."""
    import torch

    params = {k: torch.tensor(np.array(x)).requires_grad_() for k, x in problem.generator.params.items()}
    target = torch.tensor(problem.target_in_legs())
    silu = torch.nn.functional.silu
    if how == "quimb":
        import quimb.tensor as qtn

        def loss() -> Any:
            state: Any = None
            for segment in problem.segments:
                tensors = [qtn.Tensor(params[core.param], core.inds) for core in segment.cores]
                if segment.inputs:
                    tensors.append(qtn.Tensor(state, segment.inputs))
                network = qtn.TensorNetwork(tensors)
                result = network.contract(output_inds=segment.outputs, optimize="greedy")
                state = result.transpose(*segment.outputs).data
                if segment.activation != "identity":
                    state = silu(state)
            residual = state * problem.scale - target
            return (residual * residual).sum()

    else:
        stored = expressions(problem.segments)

        def plain() -> Any:
            return problem.loss(params, target, stored, silu, "torch")

        plain()  # autoray imports functions at first use, which the compiler cannot trace
        loss = torch.compile(plain, fullgraph=True) if how == "compile" else plain

    def step() -> tuple[float, dict[str, np.ndarray]]:
        value = loss()
        grads = torch.autograd.grad(value, list(params.values()))
        return float(value.detach()), {k: g.cpu().numpy() for k, g in zip(params, grads, strict=True)}

    return step


def with_tensorly(problem: Problem) -> Step:
    """Make a step of tensorly-torch, for the linear topologies that it supports, with torch autograd."""
    import torch
    from tltorch.factorized_tensors import BlockTT, TuckerTensor

    if problem.topology not in ("MPO 8", "Tucker 4"):
        raise NotImplementedError("tensorly-torch has no such topology")
    (segment,) = problem.segments
    block = problem.topology == "MPO 8"
    factors: list[torch.nn.Parameter] = []
    for core in segment.cores:
        x = torch.tensor(np.array(problem.generator.params[core.param]))
        if block:  # (left bond, out, in, right bond)
            left = [a for a, i in enumerate(core.inds) if i.startswith("b")]
            first, last = core is segment.cores[0], core is segment.cores[-1]
            x = x.movedim(left[-1], -1) if not last else x[..., None]
            x = x[None] if first else x
        elif core is not segment.cores[0]:
            x = x.T
        factors.append(torch.nn.Parameter(x.contiguous()))
    if block:
        rank = (*(f.shape[0] for f in factors), 1)
        tensor: Any = BlockTT(factors, tensorized_shape=problem.layout.factors, rank=rank)
        target = torch.tensor(problem.target)
    else:
        shape = tuple(f.shape[0] for f in factors[1:])
        tensor = TuckerTensor(factors[0], factors[1:], shape=shape, rank=tuple(factors[0].shape))
        target = torch.tensor(problem.target_in_legs())

    def restored(core: Any, g: Any) -> np.ndarray:
        if block and core is not segment.cores[-1]:
            first = core is segment.cores[0]
            g = (g[0] if first else g).movedim(-1, 0 if first else 1)
        elif not block and core is not segment.cores[0]:
            g = g.T
        return g.reshape(core.shape).cpu().numpy()

    def step() -> tuple[float, dict[str, np.ndarray]]:
        weight = tensor.to_matrix() if block else tensor.to_tensor()
        residual = weight.reshape(target.shape) * problem.scale - target
        value = (residual * residual).sum()
        grads = torch.autograd.grad(value, factors)
        return float(value.detach()), {c.param: restored(c, g) for c, g in zip(segment.cores, grads, strict=True)}

    return step


def with_tensorkrowch(problem: Problem) -> Step:
    """Make a step of TensorKrowch's networks, one per segment, contracted by its einsum, with torch autograd."""
    import tensorkrowch as tk
    import torch

    params = {k: torch.tensor(np.array(x)).requires_grad_() for k, x in problem.generator.params.items()}
    target = torch.tensor(problem.target_in_legs())
    symbol: dict[str, str] = {}

    def network(segment: Any, state: Any) -> tuple[str, list[Any]]:
        net = tk.TensorNetwork()
        operands = [(segment.inputs, state)] if segment.inputs else []
        operands += [(core.inds, params[core.param]) for core in segment.cores]
        nodes: list[Any] = []
        ends: dict[str, Any] = {}
        for inds, x in operands:
            node = tk.Node(tensor=x, axes_names=[f"{i}_axis" for i in inds], network=net)
            for i, edge in zip(inds, node.edges, strict=True):
                if i in ends:
                    ends[i] ^ edge
                else:
                    ends[i] = edge
            nodes.append(node)
        terms = [inds for inds, _ in operands]
        words = ["".join(symbol.setdefault(i, ctg.get_symbol(len(symbol))) for i in t) for t in terms]
        return ",".join(words) + "->" + "".join(symbol[i] for i in segment.outputs), nodes

    def step() -> tuple[float, dict[str, np.ndarray]]:
        state: Any = None
        for segment in problem.segments:
            equation, nodes = network(segment, state)
            state = tk.einsum(equation, *nodes).tensor
            if segment.activation != "identity":
                state = torch.nn.functional.silu(state)
        residual = state * problem.scale - target
        value = (residual * residual).sum()
        grads = torch.autograd.grad(value, list(params.values()))
        return float(value.detach()), {k: g.cpu().numpy() for k, g in zip(params, grads, strict=True)}

    return step


def with_jax(problem: Problem) -> Step:
    """Make a step of stored expressions under ``jax.jit(jax.value_and_grad)``."""
    import jax
    import jax.numpy as jnp

    params = {k: jnp.asarray(x) for k, x in problem.generator.params.items()}
    target = jnp.asarray(problem.target_in_legs())
    stored = expressions(problem.segments)
    run = jax.jit(jax.value_and_grad(lambda p, t: problem.loss(p, t, stored, jax.nn.silu, "jax")))

    def step() -> tuple[float, dict[str, np.ndarray]]:
        value, grads = run(params, target)
        return float(value), {k: np.asarray(g) for k, g in grads.items()}

    return step


def three_products(problem: Problem, name: str) -> Step:
    """Make a step of only the largest products of a TTN of bond 4: n x 256 x n forward, and two backward."""
    n, k = problem.generator.shape[0], 256
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((n, k), dtype=np.float32), rng.standard_normal((k, n), dtype=np.float32)
    if name == "torch":
        import torch

        ta, tb = torch.tensor(a), torch.tensor(b)
        out, left, right = torch.empty(n, n), torch.empty(n, k), torch.empty(k, n)

        def step() -> Any:
            torch.matmul(ta, tb, out=out)
            torch.matmul(out, tb.T, out=left)
            torch.matmul(ta.T, out, out=right)
            return 0.0, {}

        return step
    out, left, right = np.empty((n, n), np.float32), np.empty((n, k), np.float32), np.empty((k, n), np.float32)

    def numpy_step() -> Any:
        np.matmul(a, b, out=out)
        np.matmul(out, b.T, out=left)
        np.matmul(a.T, out, out=right)
        return 0.0, {}

    return numpy_step


def methods(on: str) -> dict[str, Callable[[Problem], Step]]:
    """Return all methods that are compared, on the CPU or on a GPU of PyTorch and JAX."""
    devices = ["numpy:cpu", "torch:cpu", "jax:cpu"] if on == "cpu" else [f"torch:{on}", "jax:gpu:0"]
    by_name: dict[str, Callable[[Problem], Step]] = {f"adtn {d}": partial(ours, device=d) for d in devices}
    by_name |= {f"adtn {d}, stream": partial(ours, device=d, mode="stream") for d in devices}
    by_name |= {
        "cotengra + torch autograd": partial(with_torch, how="expressions"),
        "cotengra + torch.compile": partial(with_torch, how="compile"),
        "cotengra + jax.jit": with_jax,
        "quimb + torch autograd": partial(with_torch, how="quimb"),
        "TensorKrowch": with_tensorkrowch,
        "tensorly-torch": with_tensorly,
    }
    for name in ("numpy", "torch") if on == "cpu" else ("torch",):
        by_name[f"three products n x 256 x n, {name}"] = partial(three_products, name=name)
    return by_name


def measure(name: str, n: int, seconds: float, skip: tuple[str, ...], on: str) -> dict[str, Any]:
    """Measure all methods on one generator."""
    if on != "cpu":
        import torch

        torch.set_default_device(on)  # for tensors that peers make
    problem = Problem(name, n)
    rows: dict[str, dict[str, Any]] = {}
    steps: dict[str, Step] = {}
    reference: tuple[float, dict[str, np.ndarray]] | None = None
    for method, make in methods(on).items():
        if method in skip:
            continue
        try:
            start = time.perf_counter()
            step = make(problem)
            loss, grads = step()
            rows[method] = {"first_s": time.perf_counter() - start}
        except Exception as error:  # a failed run is a result
            rows[method] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        steps[method] = step
        if grads and reference is None:
            reference = (loss, grads)
        if grads and reference is not None:
            rows[method]["loss_difference"] = abs(loss / reference[0] - 1.0)
            rows[method]["gradient_difference"] = max(
                float(np.linalg.norm(g - reference[1][k]) / np.linalg.norm(reference[1][k])) for k, g in grads.items()
            )
    for method, time_per_step in paired_seconds(steps, seconds).items():
        rows[method] |= {"seconds": time_per_step, "peak_over_weight": None}
        if on != "cpu":
            continue
        command = [sys.executable, __file__, "--peak", method, "--cases", name, "--n", str(n)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            rows[method]["peak_over_weight"] = float(done.stdout)
    peers = {m: r["seconds"] for m, r in rows.items() if not m.startswith(("adtn", "three")) and "seconds" in r}
    best = min(peers, key=peers.__getitem__)
    for row in rows.values():
        if "seconds" in row:
            row["best_peer_over_this"] = peers[best] / row["seconds"]
    return {"case": name, "n": n, "best_peer": best, "methods": rows}


def peak(method: str, name: str, n: int) -> None:
    """Print the peak memory of one step above that with target and parameters, in units of the weight."""
    problem = Problem(name, n)
    make = methods("cpu")[method]
    make(Problem(name, 256))()  # loads the framework and starts its threads
    step = make(problem)
    if "jit" in method or "compile" in method or "jax" in method:
        step()  # the memory for compiling does not count
    print(peak_bytes(step) / problem.target.nbytes)  # type: ignore[operator]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak", default="")
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--skip", nargs="*", default=[])
    parser.add_argument("--on", default="cpu", help="cpu, or a CUDA device of PyTorch, such as cuda:0")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    options = parser.parse_args()
    if options.peak:
        peak(options.peak, *options.cases, options.n)
        return
    results = [measure(name, options.n, options.seconds, tuple(options.skip), options.on) for name in options.cases]
    write_results(options.out, peers=results)


if __name__ == "__main__":
    main()
