"""One piece of work of the benchmarks: generate, apply or a fit step, on one device, as the library does it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import adtn
import numpy as np
from adtn._backend import check_device
from adtn.optim import Reconstruction
from adtn.optim._fit import FitOptions, fit_step


@dataclass(frozen=True)
class Case:
    """A generator of the bench set."""

    name: str
    topology: adtn.Topology
    shape: tuple[int, int]
    leg: int | None = 8

    def generator(self) -> adtn.Generator:
        """With a given scale, so that no first run is needed."""
        layout = None
        if self.leg is not None:
            layout = adtn.Layout.of(self.shape, leg=self.leg, order="interleaved")
        return adtn.Generator(self.shape, self.topology, layout=layout, seed=0)

    @property
    def label(self) -> str:
        return f"{self.name} {self.shape[0]}x{self.shape[1]}"


TOPOLOGIES: dict[str, tuple[adtn.Topology, int | None]] = {
    "TTN 2": (adtn.TTN(bond=2), 8),
    "TTN 4": (adtn.TTN(bond=4), 8),
    "TTN 8": (adtn.TTN(bond=8), 8),
    "aTTN 4": (adtn.ATTN(bond=4), 8),
    "MERA 4": (adtn.MERA(bond=4), 8),
    "wall 1": (adtn.BrickWall(layers=1), None),
    "wall 2": (adtn.BrickWall(layers=2), None),
    "wall 4": (adtn.BrickWall(layers=4), None),
    "MPO 8": (adtn.MPO(bond=8), 8),
    "Tucker 4": (adtn.Tucker(bond=4), 8),
}
SHAPES = ((256, 256), (1024, 1024), (4096, 4096), (11008, 4096))
BATCHES = (1, 16, 64, 256, 1024)


def bench_set(shapes: tuple[tuple[int, int], ...] = SHAPES, names: tuple[str, ...] = tuple(TOPOLOGIES)) -> list[Case]:
    """All topologies on all shapes; the brick wall needs sizes that are powers of two."""
    cases = [Case(name, *_of(name, shape)) for shape in shapes for name in names]
    return [c for c in cases if not (c.name.startswith("wall") and c.shape == (11008, 4096))]


def _of(name: str, shape: tuple[int, int]) -> tuple[adtn.Topology, tuple[int, int], int | None]:
    topology, leg = TOPOLOGIES[name]
    return topology, shape, leg


def runner(
    generator: adtn.Generator, task: str, device: str, dtype: str = "float32", *, batch: int | None = None,
    mode: str | None = None, target: np.ndarray | None = None,
) -> tuple[Callable[[], Any], adtn.Plan]:  # fmt: skip
    """A function that does the work once and waits for it, and the plan that it follows."""
    backend, where = check_device(device, dtype)
    plan = adtn.plan(generator, task, device=device, dtype=dtype, batch=batch, mode=mode)
    arrays = generator.arrays(device, dtype)
    if task == "fit":
        if target is None:
            target = random_weight(generator.shape)
        step, params, constants = fit_step(
            generator, Reconstruction(target), FitOptions(device=device, dtype=dtype, mode=mode)
        )
        work = lambda: step(params, constants, ())  # noqa: E731
    elif task == "generate":
        fn = plan.generator(backend)
        work = lambda: fn(arrays)  # noqa: E731
    else:
        assert batch is not None
        x = backend.asarray(random_weight((batch, generator.shape[1])), where, dtype)
        if plan.mode == "materialise":
            generator.apply(x, mode="materialise")
            work = lambda: generator.apply(x, mode="materialise")  # noqa: E731
        else:
            layer = backend.compile(plan.function(backend))
            work = lambda: layer(arrays, x)  # noqa: E731

    def run() -> Any:
        with backend.scope(dtype):
            result = work()
        backend.synchronize(where, result)
        return result

    return run, plan


def random_weight(shape: tuple[int, ...]) -> np.ndarray:
    """The same numbers everywhere."""
    return np.random.default_rng(7).standard_normal(shape, dtype=np.float32)


def median_seconds(run: Callable[[], Any], seconds: float = 0.6, least: int = 3, most: int = 50) -> float:
    """Median over repetitions within a budget of time; the first two are not counted."""
    run()
    began = time.perf_counter()
    run()
    once = time.perf_counter() - began
    found: list[float] = []
    for _ in range(max(least, min(most, int(seconds / max(once, 1e-6))))):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return statistics.median(found)
