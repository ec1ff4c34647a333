"""The configuration of a benchmark, from a TOML file or the defaults."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .._checks import Count, Positive, check_fields
from ..errors import BenchError


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The configuration of a benchmark.

    Parameters
    ----------
    topologies : tuple of str
        Keys of :data:`TOPOLOGIES`.
    shapes : tuple of (int, int)
        Shapes of the weights.
    tasks : tuple of str
        Tasks of :func:`adtn.plan`.
    batches : tuple of int
        Batch sizes for ``"apply"`` and ``"train"``.
    devices : tuple of str
        Devices to run on; all usable ones if empty.
    dtypes : tuple of str
        Dtypes to run in; those that a device lacks are reported as failed.
    mode : str or None
        Execution mode to force.
    seconds : float
        Time budget for the repetitions of one measurement.
    """

    topologies: tuple[str, ...] = ("TTN 4", "MERA 4", "wall 2", "MPO 8")
    shapes: tuple[tuple[Count, Count], ...] = ((1024, 1024),)
    tasks: tuple[Literal["generate", "apply", "train", "fit"], ...] = ("generate", "apply", "fit")
    batches: tuple[Count, ...] = (64,)
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    mode: Literal["materialise", "stream", "factored"] | None = None
    seconds: Positive = 0.3

    def __post_init__(self) -> None:
        check_fields(self, BenchError)

    @classmethod
    def read(cls, path: Path) -> BenchConfig:
        """Read a configuration from a TOML file with these fields.

        Raises
        ------
        BenchError
            If the file cannot be read or has unknown fields.
        """
        try:
            content: dict[str, Any] = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise BenchError(f"Got the config {path}, which cannot be read: {error}.") from error
        unknown = set(content) - set(cls.__dataclass_fields__)
        if unknown:
            raise BenchError(
                f"Got the unknown fields {sorted(unknown)} in {path}; expected some of "
                f"{', '.join(cls.__dataclass_fields__)}."
            )
        return cls(**{k: _frozen(v) for k, v in content.items()})

    def to_json(self) -> dict[str, Any]:
        """Convert to a dictionary."""
        return asdict(self)


def _frozen(x: Any) -> Any:
    return tuple(_frozen(y) for y in x) if isinstance(x, list) else x
