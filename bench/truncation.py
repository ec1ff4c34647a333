"""Bonds of a trained layer made smaller, in three metrics, and bonds that grow while the layer is trained.

Run as ``python bench/truncation.py`` with ``ADTN_DATA`` set; writes ``bench/results/truncation.json``. The first layer
of a network 784-1024-1024-10 on MNIST is an MPO with bonds of 8. Its bonds are cut to three fifths and to a third of
the parameters without a training, and one of its bonds to 3 of 8. Beside them stand a short training of what was cut,
and the same sizes trained from scratch for as many steps. Second moments are those of 4,096 inputs, and of gradients
with respect to the outputs of the layer for labels that the network draws, as they are or damped by their mean. A run
that was interrupted goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import adtn
import numpy as np
from adtn.bondspace import Metric, grow
from adtn.demo._data import Images, load_images
from adtn.demo._mlp import MLP
from adtn.optim import FitOptions, Task, run_fit
from processes import write_results

SIZES, BATCH, SHAPE = (784, 1024, 1024, 10), 256, (1024, 784)
LAYOUT = adtn.Layout.from_factors(SHAPE, [(4, 8, 4, 8), (4, 7, 4, 7)])
BOND, STEPS, SHORT, SAMPLES, PIECES = 8, 800, 200, 4096, 4
KEEP = (0.6, 1 / 3)


@dataclass(frozen=True, kw_only=True)
class Network:
    """The generator of the first layer, and all other parameters."""

    generator: adtn.Generator
    params: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The network on MNIST."""

    data: Images
    seed: int

    @property
    def mlp(self) -> MLP:
        """The network without its parameters."""
        return MLP(SIZES, 0)

    def accuracy(self, network: Network) -> float:
        """Return the accuracy on the test set in percent."""
        weight = np.asarray(network.generator.weight())
        return 100.0 * self.mlp.accuracy(weight, network.params, self.data.x_test, self.data.y_test)

    def trained(self, start: Network | adtn.Generator, steps: int, lr: float = 1e-2) -> Network:
        """Train with Adam and a cosine schedule; other layers with a tenth of the rate, twice that of the demo."""
        generator, params = (start, None) if isinstance(start, adtn.Generator) else (start.generator, start.params)
        task = self.mlp.task(self.data, self.seed, BATCH)
        if params is not None:
            task = Task(task.fn, params=dict(params), batches=task.batches, differentiated=True)
        options = FitOptions(
            device="torch:cpu", lr=lr, lr_factors={"task/": 0.2}, steps=steps, seed=self.seed, progress=False
        )
        solution = run_fit(generator, task, options).uninterrupted()
        return Network(generator=solution.generator, params=solution.params)

    def moments(self, network: Network) -> Metric:
        """Compute second moments of inputs, and of gradients for labels that the network draws."""
        x, rng = self.data.x_train[:SAMPLES].astype(np.float64), np.random.default_rng(self.seed)
        weights = [np.asarray(network.generator.weight(), np.float64)]
        weights += [np.asarray(network.params[f"weight{k}"], np.float64) for k in (1, 2)]
        states, h = [x], x
        for k, w in enumerate(weights):
            z = h @ w.T + np.asarray(network.params[f"bias{k}"], np.float64)
            h = np.maximum(z, 0.0) if k < 2 else z
            states.append(h)
        p = np.exp(h - h.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        drawn = (p.cumsum(1) > rng.random((len(p), 1))).argmax(1)
        g = p - np.eye(10)[drawn]
        for k in (2, 1):
            g = (g @ weights[k]) * (states[k] > 0.0)
        return Metric(inputs=x.T @ x / len(x), outputs=g.T @ g / len(x))

    def gradient(self, network: Network) -> np.ndarray:
        """Return the gradient with respect to the weight on 4,096 images."""
        x, y = self.data.x_train[:SAMPLES], np.eye(10, dtype=np.float32)[self.data.y_train[:SAMPLES]]
        weight = np.asarray(network.generator.weight(), np.float32)
        params = {k: np.asarray(v, np.float32) for k, v in network.params.items()}
        _, (found, _) = self.mlp.loss(weight, params, x, y)
        return np.asarray(found, np.float64)


def fresh(bond: int | tuple[int, ...], seed: int) -> adtn.Generator:
    """Make the MPO with its initial values."""
    return adtn.Generator(SHAPE, adtn.MPO(bond=bond), layout=LAYOUT, seed=seed)


def truncations(problem: Problem, add: Callable[..., None]) -> None:
    """Make the bonds of a trained network smaller."""
    whole = problem.trained(fresh(BOND, problem.seed), STEPS)
    add("bonds of 8", whole)
    both = problem.moments(whole)
    g = both.outputs
    damped = Metric(inputs=both.inputs, outputs=g + np.trace(g) / len(g) * np.eye(len(g)))
    metrics = {
        "Frobenius": None,
        "inputs": Metric(inputs=both.inputs),
        "inputs and gradients": both,
        "inputs and damped gradients": damped,
    }
    for keep in KEEP:
        for name, metric in metrics.items():
            found = adtn.truncate(whole.generator, params=int(keep * whole.generator.num_params), metric=metric)
            cut = Network(generator=found.generator, params=whole.params)
            add(f"cut to {keep:.2f}, {name}", cut, relative_error=found.relative_error)
            add(f"cut to {keep:.2f}, {name}, {SHORT} steps more", problem.trained(cut, SHORT, 3e-3))
        bonds = found.generator.topology.bond
        add(f"trained at the size of {keep:.2f}", problem.trained(fresh(bonds, problem.seed), STEPS))
    for name, metric in metrics.items():
        lost: list[Network] = []
        for bond in adtn.bonds(whole.generator):
            factors = _one(whole.generator, bond.name, metric)
            lost.append(Network(generator=whole.generator.with_bond(bond.name, factors), params=whole.params))
        add(f"one bond cut to 3, {name}, worst bond", min(lost, key=problem.accuracy))


def _one(generator: adtn.Generator, bond: str, metric: Metric | None) -> Any:
    from adtn.bondspace._projection import environment_projection

    environment = adtn.bonds(generator)[bond].environment(metric)
    return environment_projection(environment, 3).factors


def growths(problem: Problem, add: Callable[..., None]) -> None:
    """Train with bonds that grow from 2 to 8 in steps of 2, for as many steps as with bonds of 8."""
    network: Network | adtn.Generator = fresh(2, problem.seed)
    for piece in range(PIECES):
        network = problem.trained(network, STEPS // PIECES)
        if piece < PIECES - 1:
            gradient, generator = problem.gradient(network), network.generator
            for bond in adtn.bonds(generator):
                generator = grow(generator, bond.name, 2, gradient)
            network = Network(generator=generator, params=network.params)
    add("bonds grown from 2 to 8", network)
    again: Network | adtn.Generator = fresh(BOND, problem.seed)
    for _ in range(PIECES):
        again = problem.trained(again, STEPS // PIECES)
    add(f"bonds of 8, {PIECES} schedules of {STEPS // PIECES} steps", again)


def noted(rows: list[dict[str, Any]], part: str, problem: Problem, name: str, network: Network, **more: float) -> None:
    """Measure a network, and add a row."""
    size = network.generator.num_params
    row = {"part": part, "name": name, "seed": problem.seed, "params": size, "accuracy": problem.accuracy(network)}
    rows.append({**row, **more})
    print(rows[-1], flush=True)


def main() -> None:
    """Train and cut what is not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "truncation.json")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["truncation"] if arguments.out.exists() else []
    data = load_images("mnist")
    for seed in range(arguments.seeds):
        for part in (truncations, growths):
            if any(row["seed"] == seed and row["part"] == part.__name__ for row in rows):
                continue
            problem, own = Problem(data=data, seed=seed), list[dict[str, Any]]()

            part(problem, partial(noted, own, part.__name__, problem))
            rows += own
            write_results(arguments.out, truncation=rows)


if __name__ == "__main__":
    main()
