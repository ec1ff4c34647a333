"""Measure a device profile: products, permutes and elementwise functions, synchronised, in under 20 seconds."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from autoray import do

from .._atomic import write_atomic
from .._backend import Backend, Op, check_device
from .._errors import ScheduleError
from .._typing import Array
from ._profile import Curve, DeviceProfile

GEMM_SIZES = (1, 4, 16, 64, 256, 1024, 4096)
_LARGEST_PRODUCT = 1 << 26
_LARGEST_MATRIX = 1 << 22
_ENTRIES = (1 << 8, 1 << 12, 1 << 16, 1 << 19, 1 << 22, 1 << 24)
_FUNCTIONS = ("tanh", "exp", "erf", "sin", "cos", "log1p", "sqrt")
_SECONDS = 15.0


def calibrate(device: str = "numpy:cpu", dtype: str = "float32", *, save: bool = True) -> DeviceProfile:
    """Measure what operations cost on a device, and keep the result for all later plans.

    Parameters
    ----------
    device : str
        Such as ``"torch:cuda:0"``.
    dtype : str
        Of the arrays.
    save : bool
        Store the profile in the user's cache directory, from where plans read it. The file is keyed by device,
        dtype, hardware, framework version and number of threads.

    Returns
    -------
    DeviceProfile
        Its ``fit_error`` says how well it predicts measurements that it was not made from.

    Raises
    ------
    DeviceError, MissingDependencyError
        If the device or dtype is not available.

    Notes
    -----
    Run it on an otherwise idle machine. Products that take longer than about a millisecond are not measured but
    continued in proportion to their size.

    Examples
    --------
    >>> import adtn
    >>> profile = adtn.calibrate("numpy:cpu", save=False)  # doctest: +SKIP
    """
    backend, where = check_device(device, dtype)
    if backend.name == "null":
        raise ScheduleError("The null backend computes nothing that could be measured; pass a shipped profile instead.")
    with backend.scope(dtype):
        profile = _Bench(backend, where, dtype).profile()
    if save:
        path = profile_path(backend, where, dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, profile.to_json().encode())
    return profile


def find_profile(backend: Backend, where: str, dtype: str) -> DeviceProfile:
    """The calibrated profile of a device, or the datasheet that is nearest to it."""
    path = profile_path(backend, where, dtype)
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    key = (str(path), stamp)
    if key not in _LOADED:
        _LOADED[key] = DeviceProfile.load(path) if stamp else _nearest(backend, where, dtype)
    return _LOADED[key]


_LOADED: dict[tuple[str, int], DeviceProfile] = {}


def cache_dir() -> Path:
    """Where profiles and paths are kept: ``ADTN_CACHE``, or the user's cache directory."""
    import platformdirs

    return Path(os.environ.get("ADTN_CACHE") or platformdirs.user_cache_dir("adtn"))


def profile_path(backend: Backend, where: str, dtype: str) -> Path:
    """File of a calibrated profile."""
    mark = hashlib.sha256(repr(sorted(_versions(backend, where).items())).encode()).hexdigest()[:12]
    return cache_dir() / "profiles" / f"{backend.name}-{where.replace(':', '')}-{dtype}-{mark}.json"


def _nearest(backend: Backend, where: str, dtype: str) -> DeviceProfile:
    description = next((d.description.lower() for d in backend.devices() if d.name.endswith(where)), "")
    names = [
        n for n in ("t4", "a100", "h200", "h100") if n in description.replace("-", " ").split() or n in description
    ]
    if where.startswith("mps"):
        names = ["apple-m"]
    elif not names:
        names = ["generic-cpu" if where == "cpu" else "t4"]
    return DeviceProfile.shipped(names[0], dtype if dtype != "bfloat16" or names[0] != "t4" else "float16")


def _versions(backend: Backend, where: str) -> dict[str, str]:
    info = next((d for d in backend.devices() if d.name.partition(":")[2] == where), None)
    return {
        "device": info.description if info else where,
        "threads": os.environ.get("OMP_NUM_THREADS", "") + "/" + str(os.cpu_count()),
        "machine": f"{platform.machine()} {_cpu_name()}",
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


class _Bench:
    """One calibration under way."""

    def __init__(self, backend: Backend, where: str, dtype: str) -> None:
        self.backend, self.where, self.dtype = backend, where, dtype
        self.rng = np.random.default_rng(0)
        self.itemsize = {"float64": 8, "float32": 4}.get(dtype, 2)
        # a compiled program is dispatched as a whole: its calls cost more, its operations less
        self.compiles = backend.name == "jax"
        self.began = time.perf_counter()
        self.call_s = self.measure(lambda x: x, self.array(1)) if self.compiles else 0.0

    def array(self, *shape: int) -> Array:
        x = self.rng.standard_normal(shape, dtype=np.float32)
        return self.backend.asarray(x, self.where, self.dtype)

    def measure(self, fn: Callable[..., Any], *args: Array) -> float:
        """Median seconds of one call, without what a call costs as such."""
        run = self.backend.compile(fn)
        sync = self.backend.synchronize

        def once(n: int) -> float:
            began = time.perf_counter()
            for _ in range(n):
                result = run(*args)
            if self.compiles:
                result.block_until_ready()
            else:
                sync(self.where)
            return (time.perf_counter() - began) / n

        once(1)
        first = once(1)
        # the first calls of a framework are slow; short ones are repeated until the clock resolves them
        n = max(1, min(200, int(2e-4 / max(first, 1e-7))))
        found = statistics.median(once(n) for _ in range(3 if first > 2e-3 else 5))
        return max(found - getattr(self, "call_s", 0.0), 1e-8)

    def profile(self) -> DeviceProfile:
        """Everything, and how well it fits."""
        launch = self._launch()
        curves = self._curves()
        sizes, seconds = self._products()
        one = min(seconds)
        batched = self.measure(lambda x, y: do("matmul", x, y), self.array(64, 4, 4), self.array(64, 4, 4))
        memory = dict(curves["arithmetic" if self.compiles else "in_place"])
        largest = max(memory)
        profile = DeviceProfile(
            name=f"{self.backend.name}:{self.where}",
            dtype=self.dtype,
            hardware=_versions(self.backend, self.where)["machine"],
            source="measured",
            gemm_sizes=sizes,
            gemm_seconds=seconds,
            curves=curves,
            permute_seconds=(1e-7, 0.0, 0.0, 0.0, 0.0),
            launch_s=launch,
            call_s=self.call_s,
            batch_s=max((batched - one) / 63, 0.0),
            bandwidth_bytes_per_s=3 * largest * self.itemsize / memory[largest],
            cache_bytes=_last_level_cache(),
            memory_bytes=next(
                (d.memory_bytes for d in self.backend.devices() if d.name.partition(":")[2] == self.where), None
            ),
            fuses=self.compiles,
            versions=_versions(self.backend, self.where),
        )
        coefficients, permute_error = self._permutes(profile.cache_bytes)
        errors = {**self._check(profile), "permute": permute_error}
        return DeviceProfile(
            **{
                **{k: getattr(profile, k) for k in profile.__dataclass_fields__},
                "permute_seconds": coefficients,
                "fit_error": errors,
            }
        )

    def _launch(self) -> float:
        """What the library itself spends per operation: views, reshapes, dispatch."""
        x = self.array(2, 2, 2, 2)

        def views(x: Array) -> Array:
            for _ in range(8):
                x = do("reshape", do("transpose", do("reshape", x, (4, 4)), (1, 0)), (2, 2, 2, 2))
            return x

        return 0.0 if self.compiles else self.measure(views, x) / 8

    def _products(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        # compiling takes longer than measuring: a coarser grid
        sizes = (1, 8, 64, 512, 4096) if self.compiles else GEMM_SIZES
        table: dict[tuple[int, int, int], float] = {}
        x = {(a, b): self.array(a, b) for a, b in product(sizes, sizes) if a * b <= _LARGEST_MATRIX}
        for m, n, k in product(sizes, repeat=3):
            if m * n * k <= _LARGEST_PRODUCT and all(s in x for s in ((m, k), (k, n), (m, n))):
                table[m, n, k] = self._product(x[m, k], x[k, n])
        for point in product(sizes, repeat=3):  # larger ones in proportion
            if point not in table:
                smaller = [
                    ((*point[:a], sizes[sizes.index(d) - 1], *point[a + 1 :]), d / sizes[sizes.index(d) - 1])
                    for a, d in enumerate(point)
                    if d > 1
                ]
                table[point] = max(table[p] * f for p, f in smaller if p in table)
        return sizes, tuple(table[p] for p in product(sizes, repeat=3))

    def _product(self, x: Array, y: Array) -> float:
        if self.compiles or not self.backend.reuses_buffers:
            return self.measure(lambda x, y: do("matmul", x, y), x, y)
        out = do("matmul", x, y)
        return self.measure(lambda x, y: self.backend.matmul(x, y, out), x, y)

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
            for entries in _ENTRIES if name in ("arithmetic", "in_place") else _ENTRIES[:-1:2]:
                x = do("abs", self.array(entries)) * 0.1
                points.append((float(entries), self.measure(fn, x, do("zeros_like", x))))
            curves[name] = tuple(points)
        fresh = [
            (entries, max(a - b, 1e-8))
            for (entries, a), (_, b) in zip(curves["arithmetic"], curves["in_place"], strict=True)
        ]
        curves["fresh"] = tuple(fresh)
        return curves

    def _permutes(self, cache_bytes: int) -> tuple[tuple[float, float, float, float, float], float]:
        """Non-negative least squares on relative errors; every fourth measurement is kept for the check."""
        from scipy.optimize import nnls

        rows: list[list[float]] = []
        times: list[float] = []
        cases: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for bits in (10, 16, 20, 22):
            for legs in (bits, bits // 2, bits // 4, 2):
                dims = [2 ** (bits // legs)] * legs
                for _ in range(2 if self.compiles else 3):
                    axes = tuple(int(a) for a in self.rng.permutation(len(dims)))
                    cases.append((tuple(dims), axes))
                cases.append((tuple(dims), (*range(1, len(dims) - 1), 0, len(dims) - 1)[: len(dims)]))
        for dims, axes in cases:
            blocks = _blocks(dims, axes)
            entries, inner, n_axes, stride = blocks
            if n_axes == 1:
                continue
            x = self.array(*dims)

            def copy(x: Array, axes: tuple[int, ...] = axes, n: int = entries) -> Array:
                y = do("reshape", do("transpose", x, axes), (n,))
                return y + 0.0 if self.compiles else y

            times.append(self.measure(copy, x))
            far = 2 * entries * self.itemsize > cache_bytes
            rows.append([1.0, entries, entries / inner, entries * (stride > 1), entries * far])
        a, t = np.array(rows), np.array(times)
        held = np.arange(len(t)) % 4 == 3
        found, _ = nnls(a[~held] / t[~held, None], np.ones(int((~held).sum())))
        error = float(np.median(np.abs(np.log(np.maximum(a[held] @ found, 1e-12) / t[held]))))
        return tuple(float(c) for c in found), error  # pyright: ignore[reportReturnType]

    def _check(self, profile: DeviceProfile) -> dict[str, float]:
        """Errors on sizes between the points of the tables."""
        shapes = [(32, 2048, 32), (2048, 32, 32), (128, 128, 128), (512, 512, 32), (16384, 64, 16), (512, 2048, 8),
                  (32, 32, 2048), (2048, 256, 96)]  # fmt: skip
        products = [
            abs(math.log(profile.gemm_s(m, n, k) / self._product(self.array(m, k), self.array(k, n))))
            for m, n, k in shapes
        ]
        functions: list[float] = []
        for entries in (1 << 14, 1 << 20):
            x = do("abs", self.array(entries)) * 0.1
            for name in ("arithmetic", "tanh", "sin"):
                fn: Callable[[Array], Array] = (lambda x: x - x) if name == "arithmetic" else lambda x, n=name: do(n, x)
                op = Op(name, self.dtype, (entries,), fresh_bytes=1)
                functions.append(abs(math.log((profile.seconds(op) - profile.launch_s) / self.measure(fn, x))))
        return {"product": statistics.median(products), "elementwise": statistics.median(functions)}


def _blocks(dims: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Entries, length of the result's last axis, axes that do not lie together, stride of the last one."""
    strides = [math.prod(dims[a + 1 :]) for a in range(len(dims))]
    merged: list[tuple[int, int]] = []
    for a in axes:
        if merged and merged[-1][1] == dims[a] * strides[a]:
            merged[-1] = (merged[-1][0] * dims[a], strides[a])
        else:
            merged.append((dims[a], strides[a]))
    return math.prod(dims), merged[-1][0], len(merged), merged[-1][1]


def _last_level_cache() -> int:
    """Bytes of the largest cache that one core sees; 32 MiB where the system does not tell."""
    sizes: list[int] = []
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = entry.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1))
    return max(sizes, default=32 << 20)
