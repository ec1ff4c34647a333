"""Device profiles: the cost of operations on one device in one dtype, measured or from datasheets."""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from .._checks import checked
from .._files import read_json, read_whole, sealed_json
from ..backends import Op
from ..errors import ProfileError, ScheduleError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

FORMAT = 4
_UNSEALED = 3  # the same format without a digest
_KIND = "device profile"
_TABLES = ("gemm_sizes", "gemm_seconds", "permute_seconds", "permute_many", "transposed_sizes", "transposed_factors")
_RENAMED = {"turned_sizes": "transposed_sizes", "turned_factors": "transposed_factors"}  # in profiles of older versions
Curve = tuple[tuple[float, float], ...]
Sizes = tuple[int, ...]


class _Grid:
    """A table over three sizes, interpolated in logarithms."""

    def __init__(self, axes: tuple[Sizes, ...], values: tuple[float, ...]) -> None:
        self.axes = tuple(tuple(math.log(n) for n in sizes) for sizes in axes)
        self.logs = tuple(math.log(x) for x in values)

    def at(self, *point: int, beyond: tuple[bool, ...]) -> float:
        """Interpolate at a point; outside the grid, use its edge, or extrapolate along the axes ``beyond``."""
        total = 0.0
        corners: list[tuple[int, int, float]] = []
        for d, axis, grows in zip(point, self.axes, beyond, strict=True):
            x = max(math.log(max(d, 1)), axis[0])
            if x > axis[-1]:
                total += (x - axis[-1]) * grows
                x = axis[-1]
            i = min(bisect_right(axis, x) - 1, len(axis) - 2)
            corners.append((len(axis), i, (x - axis[i]) / (axis[i + 1] - axis[i])))
        for bits in range(8):
            weight, at = 1.0, 0
            for d, (size, i, t) in enumerate(corners):
                up = bits >> d & 1
                weight *= t if up else 1.0 - t
                at = at * size + i + up
            if weight:
                total += weight * self.logs[at]
        return math.exp(total)


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """The cost of operations on one device in one dtype.

    Parameters
    ----------
    name : str
        Name such as ``"torch:cpu"`` or ``"h200"``.
    dtype : str
        The dtype for which the profile is valid.
    hardware : str
        The hardware on which it was measured, or to which the datasheet belongs.
    source : {"measured", "datasheet"}
        Measured profiles consist of tables; datasheets give peak rates, from which tables are computed with assumed
        efficiencies.
    gemm_sizes : tuple of int
        Grid points of m, n and k.
    gemm_seconds : tuple of float
        Seconds of a product ``(m, n, k)`` at each point of the grid, the last index varying fastest; logarithms
        are interpolated between points.
    curves : dict of str to tuple of (float, float)
        Pairs of entries and seconds for ``"arithmetic"``, ``"in_place"``, ``"sum"``, ``"fresh"`` and every elementwise
        function; logarithms are interpolated. ``"fresh"`` is the cost of touching new memory.
    transposed_sizes : tuple of int
        Grid points of m, n and k for transposed operands.
    transposed_factors : tuple of float
        Factors by which a product takes longer if its left operand, its right one, or both are transposed: three
        blocks of ``len(transposed_sizes) ** 3`` values. No factors if empty.
    permute_sizes : tuple of three tuple of int
        Grid points for a permuting copy of three axes: entries, length of the last axis of the result, and the stride
        at which it is read.
    permute_seconds : tuple of float
        Seconds at each point of that grid, the last index varying fastest.
    permute_many : tuple of two float
        Additional seconds for more axes: per pass over the last two, and per entry and axis.
    launch_s : float
        Seconds of overhead per operation inside a program, in addition to the tables.
    call_s : float
        Seconds of overhead per call of a compiled program.
    batch_s : float
        Seconds of one more product in a batch.
    program_factor : float
        Time of whole programs relative to the sum of their operations, each measured with warm caches.
    bandwidth_bytes_per_s : float
        Bandwidth of memory.
    cache_bytes : int
        Size of the last-level cache.
    memory_bytes : int or None
        Memory of the device.
    versions : dict of str to str
        Everything the measurement depends on, such as the number of threads.
    fit_error : dict of str to float
        Median of ``abs(log(predicted / measured))`` per group, on measurements that are not in the tables.

    Examples
    --------
    >>> import adtn
    >>> adtn.DeviceProfile.shipped("h200").source
    'datasheet'
    """

    name: str
    dtype: str
    hardware: str
    source: str
    gemm_sizes: tuple[int, ...]
    gemm_seconds: tuple[float, ...]
    curves: dict[str, Curve]
    permute_sizes: tuple[Sizes, Sizes, Sizes]
    permute_seconds: tuple[float, ...]
    permute_many: tuple[float, float]
    launch_s: float
    call_s: float
    batch_s: float
    program_factor: float
    bandwidth_bytes_per_s: float
    cache_bytes: int
    memory_bytes: int | None = None
    transposed_sizes: tuple[int, ...] = ()
    transposed_factors: tuple[float, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    fit_error: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = len(self.gemm_sizes) ** 3, math.prod(map(len, self.permute_sizes))
        counts = len(self.gemm_seconds), len(self.permute_seconds)
        if counts != expected:
            raise ScheduleError(
                f"Got {counts[0]} timings of products and {counts[1]} of permutes; expected {expected[0]} and "
                f"{expected[1]}. Calibrate again."
            )

    def __hash__(self) -> int:
        return hash((self.name, self.dtype, self.hardware, self.gemm_seconds, self.permute_seconds, self.launch_s))

    def __repr__(self) -> str:
        peak = max(self.gemm_flop_per_s(n, n, n) for n in self.gemm_sizes)
        errors = ", ".join(f"{k} {v:.2f}" for k, v in self.fit_error.items())
        lines = [
            f"{self.name} {self.dtype} ({self.source}): {self.hardware}",
            f"  products      {peak / 1e9:.0f} GFLOP/s at best, "
            f"{self.gemm_flop_per_s(4096, 64, 16) / 1e9:.1f} at 4096x64x16",
            f"  memory        {self.bandwidth_bytes_per_s / 1e9:.1f} GB/s, "
            f"last-level cache {self.cache_bytes >> 20} MiB",
            f"  launch        {self.launch_s * 1e6:.2f} us, call {self.call_s * 1e6:.1f} us",
        ]
        if errors:
            lines.append(f"  median |log(predicted/measured)|: {errors}")
        if not self.fits:
            lines.append("  this profile does not match its own measurements: calibrate again on an idle machine")
        return "\n".join(lines)

    @property
    def itemsize(self) -> int:
        """The size of an entry in bytes."""
        return itemsize_of(self.dtype)

    @property
    def fits(self) -> bool:
        """Whether predictions are within a factor of 1.5 of the measurements in every group."""
        return all(error <= math.log(1.5) for error in self.fit_error.values())

    @cached_property
    def _tables(self) -> list[_Grid]:
        """The table of products, then those of the factors for transposed operands."""
        grids = [_Grid((self.gemm_sizes,) * 3, self.gemm_seconds)]
        n = len(self.transposed_sizes) ** 3
        factors = [self.transposed_factors[i * n : (i + 1) * n] for i in range(3 if n else 0)]
        return grids + [_Grid((self.transposed_sizes,) * 3, values) for values in factors]

    @cached_property
    def _permutes(self) -> _Grid:
        return _Grid(self.permute_sizes, self.permute_seconds)

    @cached_property
    def _known(self) -> dict[tuple[int, int, int, int], float]:
        return {}

    @cached_property
    def _known_permutes(self) -> dict[tuple[int, int, int], float]:
        return {}

    def gemm_s(self, m: int, n: int, k: int, transposed: int = 0) -> float:
        """Predict the seconds of one product ``(m, k) @ (k, n)``; ``transposed`` as in :class:`Op`."""
        seconds = self._known.get((m, n, k, transposed))
        if seconds is None:
            first, *others = self._tables
            seconds = first.at(m, n, k, beyond=(True,) * 3)
            if transposed and others:
                seconds *= others[transposed - 1].at(m, n, k, beyond=(False,) * 3)
            self._known[m, n, k, transposed] = seconds
        return seconds

    def gemm_flop_per_s(self, m: int, n: int, k: int) -> float:
        """Predict the rate of one product in operations per second."""
        return 2.0 * m * n * k / self.gemm_s(m, n, k)

    def curve_s(self, kind: str, entries: int) -> float:
        """Predict the seconds of an elementwise operation."""
        curve = self.curves.get(kind) or self.curves["tanh"]
        if entries <= curve[0][0]:
            return curve[0][1]
        for (x0, y0), (x1, y1) in pairwise(curve):
            if entries <= x1:
                t = math.log(entries / x0) / math.log(x1 / x0)
                return math.exp((1 - t) * math.log(y0) + t * math.log(y1))
        return curve[-1][1] * entries / curve[-1][0]

    def permute_s(self, entries: int, inner: int, stride: int, before: int, axes: int) -> float:
        """Predict the seconds of a permuting copy, described as in :class:`Op`."""
        key = (entries, inner, stride)
        seconds = self._known_permutes.get(key)
        if seconds is None:
            seconds = self._known_permutes[key] = self._permutes.at(*key, beyond=(True, False, False))
        features = permute_features(entries, inner, before, axes)
        return seconds + sum(c * f for c, f in zip(self.permute_many, features, strict=True))

    def seconds(self, op: Op) -> float:
        """Predict the seconds of one operation."""
        entries = op.shape[0]
        fresh = self.curve_s("fresh", op.fresh_bytes // 4) if op.fresh_bytes >= 1 << 16 else 0.0
        if op.kind == "matmul":
            batch, m, n, k = op.shape
            one = self.gemm_s(m, n, k, op.transposed)
            if batch > 1:
                one = max(one, self.gemm_s(1, 1, 1)) + (batch - 1) * max(one - self.gemm_s(1, 1, 1), self.batch_s)
            far = op.moved_bytes > self.cache_bytes
            return self.launch_s + (max(one, op.moved_bytes / self.bandwidth_bytes_per_s) if far else one) + fresh
        if op.kind == "permute":
            return self.launch_s + self.permute_s(*op.shape) + fresh
        kind = "in_place" if op.kind == "arithmetic" and not op.fresh_bytes else op.kind
        return self.launch_s + self.curve_s(kind, entries)

    def total_s(self, ops: Iterable[tuple[Op, int]]) -> float:
        """Predict the seconds of a program, given its operations with their counts."""
        return self.call_s + self.program_factor * sum(self.seconds(op) * times for op, times in ops)

    @property
    def flops_per_entry(self) -> float:
        """The number of multiply-adds that take as long as moving one entry: the ridge point of a roofline."""
        # the rate of products with thin operands, which make up contraction trees
        rate = self.gemm_flop_per_s(4096, 64, 64) / 2.0
        return rate * self.itemsize / self.bandwidth_bytes_per_s

    def to_json(self) -> str:
        """Convert to JSON, with a digest of every byte."""
        return sealed_json(_KIND, FORMAT, indent=1, **asdict(self)).decode()

    @classmethod
    @checked(ScheduleError)
    def from_json(cls, text: str) -> DeviceProfile:
        """Invert :meth:`to_json`; profiles of format 3, which have no digest, are accepted as well.

        Raises
        ------
        ProfileError
            If the text is not a profile, was modified, or has an unsupported format.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            if not isinstance(content, dict) or content.get("format") not in (_UNSEALED, FORMAT):
                raise ValueError("unsupported format")
            if content["format"] == FORMAT:
                read_json(text.encode(), _KIND, FORMAT)
            elif "sha256" in content:
                raise ValueError("unexpected digest")
            content = {
                _RENAMED.get(k, k): value for k, value in content.items() if k not in ("format", "sha256", "kind")
            }
            content["curves"] = {k: tuple(tuple(p) for p in curve) for k, curve in content["curves"].items()}
            content["permute_sizes"] = tuple(map(tuple, content["permute_sizes"]))
            for key in _TABLES:
                content[key] = tuple(content[key])
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ProfileError(
                f"Got text that is not a device profile ({error}); expected the output of to_json. Calibrate again."
            ) from error

    @classmethod
    @checked(ScheduleError)
    def load(cls, path: str | os.PathLike[str]) -> DeviceProfile:
        """Read a profile from a file.

        Raises
        ------
        ProfileError
            If the file cannot be read, is not a profile or was modified.
        """
        data = read_whole(path, "a device profile written by 'adtn calibrate --out'", ProfileError)
        try:
            return cls.from_json(data.decode(errors="replace"))
        except ProfileError as error:
            raise ProfileError(f"{path}: {error}") from error.__cause__

    @classmethod
    @checked(ScheduleError)
    def shipped(cls, name: str, dtype: str = "float32") -> DeviceProfile:
        """Load a profile that comes with the library: measured, or computed from a public datasheet.

        Parameters
        ----------
        name : str
            One of :func:`shipped_profiles`.
        dtype : str
            The dtype of the profile.

        Raises
        ------
        ScheduleError
            If the name is unknown, or the profile does not exist in this dtype.
        """
        sheets = _datasheets()
        if name in sheets:
            return _from_datasheet(name, dtype, sheets[name])
        if name not in _measured():
            names = ", ".join(shipped_profiles())
            raise ScheduleError(
                f"Got profile name={name!r}; expected one of {names}. plan also accepts the path of a file."
            )
        profile = cls.from_json((_folder() / "measured" / f"{name}.json").read_text())
        if profile.dtype != dtype:
            raise ScheduleError(
                f"Got dtype {dtype!r} for profile {name!r}; expected {profile.dtype}, in which it was measured."
            )
        return profile


def itemsize_of(dtype: str) -> int:
    """Return the size of an entry in bytes."""
    return {"float64": 8, "float32": 4}.get(dtype, 2)


def permute_features(entries: int, inner: int, before: int, axes: int) -> tuple[float, float]:
    """Compute the two features in which the time of a copy of more than three axes is linear, beside the table."""
    more = max(axes - 3, 0)
    return entries / (inner * before) * (more > 0), float(entries * more)


def shipped_profiles() -> tuple[str, ...]:
    """List the names of the profiles that come with the library."""
    return (*_datasheets(), *_measured())


def _folder() -> Traversable:
    from importlib import resources  # 10 ms

    return resources.files("adtn.device")


def _datasheets() -> dict[str, dict[str, Any]]:
    return json.loads((_folder() / "datasheets.json").read_text())


def _measured() -> list[str]:
    return sorted(f.name.removesuffix(".json") for f in (_folder() / "measured").iterdir())


Profile = Annotated[DeviceProfile | str | os.PathLike[str], "a DeviceProfile, the name of a shipped profile or a file"]

_SHEET_SIZES = (1, 4, 16, 64, 256, 1024, 4096)
_SHEET_ENTRIES = (1 << 10, 1 << 14, 1 << 18, 1 << 22, 1 << 26)
_SHEET_INNER = (1, 2, 4, 8, 16, 64, 1024)
_SHEET_STRIDES = (1, 2)
_FUNCTIONS = ("tanh", "exp", "erf", "sin", "cos", "log1p", "sqrt")


def _from_datasheet(name: str, dtype: str, sheet: dict[str, Any]) -> DeviceProfile:
    """Compute tables from peak rates; products follow a roofline, at half rate for a dimension that fills a tile."""
    flops: dict[str, float] = sheet["flop_per_s"]
    if dtype not in flops:
        raise ScheduleError(f"Got dtype {dtype!r} for profile {name!r}; expected one of {', '.join(flops)}.")
    peak = flops[dtype] * sheet["efficiency"]
    bandwidth = sheet["bandwidth_bytes_per_s"] * sheet["efficiency"]
    half, launch = sheet["half_rate_size"], sheet["launch_s"]
    itemsize = itemsize_of(dtype)

    def product(m: int, n: int, k: int) -> float:
        rate = peak * math.prod(d / (d + half) for d in (m, n, k))
        return launch + max(2.0 * m * n * k / rate, (m * n + m * k + k * n) * itemsize / bandwidth)

    def curve(passes: float, work: float) -> Curve:
        return tuple(
            (float(n), launch + max(passes * n * itemsize / bandwidth, work * n / sheet["function_per_s"]))
            for n in _SHEET_ENTRIES
        )

    entry = 2.0 * itemsize / bandwidth
    return DeviceProfile(
        name=name,
        dtype=dtype,
        hardware=sheet["hardware"],
        source="datasheet",
        gemm_sizes=_SHEET_SIZES,
        gemm_seconds=tuple(product(m, n, k) for m in _SHEET_SIZES for n in _SHEET_SIZES for k in _SHEET_SIZES),
        curves={
            "arithmetic": curve(3.0, 0.05),
            "in_place": curve(3.0, 0.05),
            "sum": curve(1.0, 0.05),
            "fresh": curve(0.0, 0.0),
            **{f: curve(2.0, 1.0) for f in _FUNCTIONS},
        },
        permute_sizes=(_SHEET_ENTRIES, _SHEET_INNER, _SHEET_STRIDES),
        permute_seconds=tuple(
            launch + entry * n * (1.0 + sheet["permute_run_entries"] / inner + (stride > 1))
            for n in _SHEET_ENTRIES
            for inner in _SHEET_INNER
            for stride in _SHEET_STRIDES
        ),
        permute_many=(0.0, 0.0),
        launch_s=0.0,
        call_s=launch,
        batch_s=sheet["batch_s"],
        program_factor=1.0,
        bandwidth_bytes_per_s=bandwidth,
        cache_bytes=sheet["cache_bytes"],
        memory_bytes=sheet["memory_bytes"],
    )
