"""Calibration of a device profile: synchronised timing of products, permutes and functions, in under 20 seconds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from autoray import do

from .._typing import Array
from ..backends import Backend, Op
from ._profile import Curve, DeviceProfile, Sizes, itemsize_of, permute_features
from ._profile_store import last_level_cache, versions

GEMM_SIZES = (1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096, 65536)
COARSE_SIZES = (1, 8, 64, 512, 4096, 65536)  # for backends on which compiling takes longer than measuring
TRANSPOSED_SIZES = (1, 4, 16, 64, 1024, 65536)
_ROUNDS = 3
_THIN = 1024  # smaller products depend little on the memory order of their operands
_LARGEST_PRODUCT = 1 << 28
_LARGEST_MATRIX = 1 << 23
PERMUTE_SIZES = ((1 << 10, 1 << 14, 1 << 18, 1 << 22), (2, 8, 64, 512), (1, 2, 8, 64, 256, 1024, 4096))
COARSE_PERMUTES = ((1 << 12, 1 << 18, 1 << 22), (2, 16, 256), (1, 2, 64, 4096))
_PERMUTE_BITS = (12, 16, 20, 22)
_MANY = 5  # from this number of axes on, a copy depends on their number
_ENTRIES = (1 << 8, 1 << 12, 1 << 16, 1 << 19, 1 << 22, 1 << 24)
_FUNCTIONS = ("tanh", "exp", "erf", "sin", "cos", "log1p", "sqrt")


class Calibration:
    """A calibration in progress."""

    def __init__(self, backend: Backend, where: str, dtype: str) -> None:
        self.backend, self.where, self.dtype = backend, where, dtype
        self.rng = np.random.default_rng(0)
        self.itemsize = itemsize_of(dtype)
        # a compiled program is dispatched as a whole, so its calls cost more and its operations less
        self.compiles = backend.compiles
        self.began = time.perf_counter()
        self.call_s = 0.0
        if self.compiles:
            self.call_s = self.measure(lambda x: x, self.array(1))

    def array(self, *shape: int) -> Array:
        """Create a random array on the device."""
        x = self.rng.standard_normal(shape, dtype=np.float32)
        return self.backend.asarray(x, self.where, self.dtype)

    def measure(self, fn: Callable[..., Any], *args: Array) -> float:
        """Measure the least seconds of one call, minus the call overhead; other load on the machine only adds time."""
        run = self.backend.compile(fn)
        sync = self.backend.synchronize

        def once(n: int) -> float:
            start = time.perf_counter()
            result: Any = None
            for _ in range(n):
                result = run(*args)
            sync(self.where, result)
            return (time.perf_counter() - start) / n

        once(1)
        first = once(1)
        if first > 2e-3:
            least = min(first, *(once(1) for _ in range(2 if first < 2e-2 else 1)))
        else:  # repeated until the clock resolves it
            n = max(1, min(200, int(1.5e-4 / max(first, 1e-7))))
            least = min(once(n) for _ in range(_ROUNDS))
        # an operation may take less time than its dispatch, which fluctuates
        return max(least - self.call_s, 0.2 * least)

    def profile(self) -> DeviceProfile:
        """Measure everything except whole programs, and the error of the resulting profile."""
        launch = self._launch()
        sizes, seconds = self._products()
        curves = self._curves()
        permute_sizes, permute_seconds = self._permutes()
        transposed_sizes, transposed_factors = self._transposed()
        if not self.compiles:  # repeat seconds later: a shared machine may have been slow for a while
            seconds = tuple(map(min, seconds, self._products()[1]))
        one = min(seconds)
        batched = self.measure(lambda x, y: do("matmul", x, y), self.array(64, 4, 4), self.array(64, 4, 4))
        memory = dict(curves["arithmetic" if self.compiles else "in_place"])
        largest = max(memory)
        environment = versions(self.backend, self.where)
        profile = DeviceProfile(
            name=f"{self.backend.name}:{self.where}",
            dtype=self.dtype,
            hardware=environment["machine"]
            if self.where == "cpu"
            else f"{environment['device']}, {environment['machine']}",
            source="measured",
            gemm_sizes=sizes,
            gemm_seconds=seconds,
            transposed_sizes=transposed_sizes,
            transposed_factors=transposed_factors,
            curves=curves,
            permute_sizes=permute_sizes,
            permute_seconds=permute_seconds,
            permute_many=(0.0, 0.0),
            launch_s=launch,
            call_s=self.call_s,
            batch_s=max((batched - one) / 63, 0.0),
            program_factor=1.0,
            bandwidth_bytes_per_s=3 * largest * self.itemsize / memory[largest],
            cache_bytes=last_level_cache(),
            memory_bytes=next(
                (d.memory_bytes for d in self.backend.devices() if d.name.partition(":")[2] == self.where), None
            ),
            versions=environment,
        )
        many, permute_error = self._many_axes(profile)
        profile = replace(profile, permute_many=many)
        return replace(profile, fit_error={**self._check(profile), "permute": permute_error})

    def _launch(self) -> float:
        """Measure the overhead of the library per operation: views, reshapes, dispatch."""
        x = self.array(2, 2, 2, 2)

        def views(x: Array) -> Array:
            for _ in range(8):
                x = do("reshape", do("transpose", do("reshape", x, (4, 4)), (1, 0)), (2, 2, 2, 2))
            return x

        return 0.0 if self.compiles else self.measure(views, x) / 8

    def _products(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        sizes = COARSE_SIZES if self.compiles else GEMM_SIZES
        table: dict[tuple[int, ...], float] = {}
        x = {(a, b): self.array(a, b) for a, b in product(sizes, sizes) if a * b <= _LARGEST_MATRIX}
        for m, n, k in product(sizes, repeat=3):
            if m * n * k <= _LARGEST_PRODUCT and all(s in x for s in ((m, k), (k, n), (m, n))):
                table[m, n, k] = self._product(x[m, k], x[k, n])
        for point in product(sizes, repeat=3):  # extrapolate larger products in proportion
            if point not in table:
                smaller = [
                    ((*point[:a], sizes[sizes.index(d) - 1], *point[a + 1 :]), d / sizes[sizes.index(d) - 1])
                    for a, d in enumerate(point)
                    if d > 1
                ]
                table[point] = min(table[p] * f for p, f in smaller if p in table)
        return sizes, tuple(table[p] for p in product(sizes, repeat=3))

    def _transposed(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Measure the cost of transposed operands, except with a compiler, which chooses memory layouts itself."""
        if self.compiles:
            return (), ()
        ratios: dict[tuple[int, ...], list[float]] = {}
        for m, n, k in product(TRANSPOSED_SIZES, repeat=3):
            ratios[m, n, k] = [1.0] * 3
            large = m * n * k > _LARGEST_PRODUCT or max(m * k, k * n, m * n) > _LARGEST_MATRIX
            if large or max(m, n, k) < _THIN or (m, n, k).count(1) > 1:
                continue
            x, xt = self.array(m, k), do("transpose", self.array(k, m), (1, 0))
            y, yt = self.array(k, n), do("transpose", self.array(n, k), (1, 0))
            # measure all in one go, because the speed of the machine changes
            plain, *others = (self._product(*pair) for pair in ((x, y), (xt, y), (x, yt), (xt, yt)))
            ratios[m, n, k] = [min(max(t / plain, 0.2), 20.0) for t in others]
        return TRANSPOSED_SIZES, tuple(factors[case] for case in range(3) for factors in ratios.values())

    def _product(self, x: Array, y: Array) -> float:
        return self.measure(self.backend.workspace().matmul, x, y)

    def _curves(self) -> dict[str, Curve]:
        kinds: dict[str, Callable[[Array, Array], Array]] = {
            "arithmetic": lambda x, y: x - y,
            "in_place": lambda x, y: self.backend.subtract(x, y),
            "sum": lambda x, y: do("sum", x),
        }
        for name in _FUNCTIONS:
            full = "scipy.special.erf" if name == "erf" else name
            kinds[name] = lambda x, y, full=full: do(full, x)
        curves: dict[str, Curve] = {}
        for name, fn in kinds.items():
            points: list[tuple[float, float]] = []
            for entries in _ENTRIES if name in ("arithmetic", "in_place") else _ENTRIES[:-1]:
                x = do("abs", self.array(entries)) * 0.1
                points.append((float(entries), self.measure(fn, x, do("zeros_like", x))))
            curves[name] = tuple(points)
        fresh = [
            (entries, max(a - b, 1e-8))
            for (entries, a), (_, b) in zip(curves["arithmetic"], curves["in_place"], strict=True)
        ]
        curves["fresh"] = tuple(fresh)
        return curves

    def _permutes(self) -> tuple[tuple[Sizes, Sizes, Sizes], tuple[float, ...]]:
        """Measure copies of three axes; impossible points of the grid are extrapolated in proportion."""
        sizes = COARSE_PERMUTES if self.compiles else PERMUTE_SIZES
        table: dict[tuple[int, ...], float] = {}
        for entries, inner, stride in product(*sizes):
            rows = entries // inner
            half = 1 << (rows.bit_length() - 1) // 2
            if inner * stride * 2 <= entries:
                dims, axes = (rows // stride, inner, stride), (0, 2, 1)
                if stride == 1:
                    dims, axes = (half, rows // half, inner), (1, 0, 2)
                table[entries, inner, stride] = self._permute(dims, axes)
        for entries, inner, stride in sorted(product(*sizes), reverse=True):
            if (entries, inner, stride) in table:
                continue
            larger = [n for n in sizes[0] if (n, inner, stride) in table]
            nearest = (larger[0], inner, stride) if larger else max(p for p in table if p[0] == entries)
            table[entries, inner, stride] = table[nearest] * entries / nearest[0]
        return sizes, tuple(table[p] for p in product(*sizes))

    def _permute(self, dims: tuple[int, ...], axes: tuple[int, ...]) -> float:
        space = self.backend.workspace()

        def copy(x: Array) -> Array:
            y = space.packed(do("transpose", x, axes), (math.prod(dims),))
            return y + 0.0 if self.compiles else y

        return self.measure(copy, self.array(*dims))

    def _many_axes(self, profile: DeviceProfile) -> tuple[tuple[float, float], float]:
        """Fit the cost of many axes by non-negative least squares; every third measurement is held out as a check."""
        from scipy.optimize import nnls

        shapes: list[tuple[int, int, int, int, int]] = []
        times: list[float] = []
        for bits in _PERMUTE_BITS[::2] if self.compiles else _PERMUTE_BITS:
            for legs in dict.fromkeys((bits, bits // 2, bits // 3, bits // 4, 3)):
                dims = (2 ** (bits // legs),) * legs
                for _ in range(2):
                    axes = tuple(int(a) for a in self.rng.permutation(legs))
                    shape = _copied(dims, axes)
                    if shape[-1] > 1:
                        shapes.append(shape)
                        times.append(self._permute(dims, axes))
        t, predicted = np.array(times), np.array([profile.permute_s(*shape) for shape in shapes])
        a = np.array([permute_features(s[0], s[1], s[3], s[4]) for s in shapes])
        held_out = np.arange(len(t)) % 3 == 2
        fitted = ~held_out & np.array([s[-1] >= _MANY for s in shapes])
        coefficients, _ = nnls(a[fitted] / t[fitted, None], np.maximum(1.0 - predicted[fitted] / t[fitted], 0.0))
        error = float(np.median(np.abs(np.log((predicted + a @ coefficients) / t)[held_out])))
        return (float(coefficients[0]), float(coefficients[1])), error

    def _check(self, profile: DeviceProfile) -> dict[str, float]:
        """Measure the prediction errors at sizes between the points of the tables."""
        shapes = [
            (32, 2048, 32),
            (2048, 32, 32),
            (128, 128, 128),
            (512, 512, 32),
            (16384, 64, 16),
            (512, 2048, 8),
            (32, 32, 2048),
            (2048, 256, 96),
        ]
        products = [
            abs(math.log(profile.gemm_s(m, n, k) / self._product(self.array(m, k), self.array(k, n))))
            for m, n, k in shapes
        ]
        functions: list[float] = []
        for entries in (1 << 14, 1 << 20):
            x = do("abs", self.array(entries)) * 0.1
            for name in ("arithmetic", "tanh", "sin"):
                fn: Callable[[Array], Array] = (lambda x: x - x) if name == "arithmetic" else lambda x, n=name: do(n, x)
                op = Op(kind=name, dtype=self.dtype, shape=(entries,), fresh_bytes=1)
                functions.append(abs(math.log((profile.seconds(op) - profile.launch_s) / self.measure(fn, x))))
        return {"product": statistics.median(products), "elementwise": statistics.median(functions)}


def _copied(dims: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, int, int, int, int]:
    """Describe a permuting copy as the shape of an :class:`Op`."""
    strides = [math.prod(dims[a + 1 :]) for a in range(len(dims))]
    merged: list[tuple[int, int]] = [(1, 0)]
    for a in axes:
        if merged[-1][1] == dims[a] * strides[a]:
            merged[-1] = (merged[-1][0] * dims[a], strides[a])
        else:
            merged.append((dims[a], strides[a]))
    return math.prod(dims), *merged[-1], merged[-2][0], len(merged) - 1
