"""The rows of a report: one replaced layer, the model as a whole, and another way to make it as small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """A replaced layer.

    Parameters
    ----------
    name, kind : str
    shapes : tuple of tuple of int
        The shapes of its weights.
    topology : str
        With the precision of the parameters, if they are rounded.
    dense, params, active : int
        Entries of the dense weights, parameters of the generators, and those that can influence the weights.
    dense_bytes, bytes : int
        The bytes of the dense weights, and of the parameters as they are stored.
    local_errors : list of float
        Relative errors after the local fit, before the model is trained as a whole: of the layer's outputs if there are
        data, or else of its weights.
    tied : tuple of str
        Layers that share the generator.
    sensitivity : float or None
        The growth of the model's loss per squared error, if there is a budget.
    predicted_seconds : float or None
        Predicted seconds of the layer in a forward pass; for convolutions and embeddings, of generating the weight.
    """

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    topology: str
    dense: int
    params: int
    active: int
    dense_bytes: int
    bytes: int
    local_errors: list[float]
    tied: tuple[str, ...] = ()
    sensitivity: float | None = None
    predicted_seconds: float | None = None

    @property
    def ratio(self) -> float:
        """The number of dense entries per parameter."""
        return self.dense / max(self.params, 1)


@dataclass(frozen=True, kw_only=True)
class ForwardCost:
    """The time and memory of a forward pass of the first batch.

    Parameters
    ----------
    seconds : sequence of float
        Of every repetition.
    peak_bytes : int or None
        The peak of the memory beside the parameters, where it can be measured.
    """

    seconds: Sequence[float]
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """The costs of the whole model, with time and memory of a forward pass, as a smaller model need not be faster.

    Parameters
    ----------
    params, bytes : int
        Its parameters, and their bytes; cores that are stored as codes count as such.
    accuracy : float or None
        In percent, on the test data.
    forward_seconds : float or None
        The median time of a forward pass; the dense and the compressed model are measured in turns.
    forward_peak_bytes : int or None
    loss, score : float or None
        On the test data, and by the user's function.
    forward_quartiles : tuple of float or None
        The first and the third quartile of the times.
    resident_bytes : int or None
        The memory of parameters and buffers; seeded and other frozen values count, unlike in ``bytes``.
    file_bytes : int or None
        The size of the file of the state, headers included, where that is what baselines are compared by.
    """

    params: int
    bytes: int
    accuracy: float | None
    forward_seconds: float | None
    forward_peak_bytes: int | None
    loss: float | None = None
    score: float | None = None
    forward_quartiles: tuple[float, float] | None = None
    resident_bytes: int | None = None
    file_bytes: int | None = None

    @property
    def compared_bytes(self) -> int:
        """The bytes by which it is compared with baselines: those of its file, or of its parameters in memory."""
        return self.bytes if self.file_bytes is None else self.file_bytes

    @property
    def quality(self) -> float | None:
        """The user's score, or the accuracy if there is no score."""
        return self.accuracy if self.score is None else self.score

    def with_forward(self, cost: ForwardCost) -> ModelCost:
        """Return these costs with measured forward passes."""
        first, median, third = (float(x) for x in np.quantile(cost.seconds, (0.25, 0.5, 0.75)))
        return replace(
            self,
            forward_seconds=median,
            forward_quartiles=(first, third),
            forward_peak_bytes=cost.peak_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A different way to make the same model small, or the dense model after the same training.

    Parameters
    ----------
    name : str
    params, bytes : int
        The bytes are those of its file if the result has :attr:`ModelCost.file_bytes`, or else of its parameters.
    quality : float or None
        The score, or the accuracy in percent.
    loss : float or None
        On the test data.
    """

    name: str
    params: int
    bytes: int
    quality: float | None
    loss: float | None

    def beats(self, result: ModelCost) -> bool:
        """Return whether it is better than a result of no fewer bytes, or as good and smaller.

        The quality decides, and where that is equal the loss. What is not finite is worse than any number.
        """
        most = result.compared_bytes
        if self.bytes > most:
            return False
        if self.quality is not None and result.quality is not None:
            own, other = _or_worst(self.quality, -math.inf), _or_worst(result.quality, -math.inf)
            if own != other:
                return own > other
        if self.loss is None or result.loss is None:  # equal where it is known, so the size decides
            return self.quality is not None and self.bytes < most
        own, other = _or_worst(self.loss, math.inf), _or_worst(result.loss, math.inf)
        return own < other or (own == other and self.bytes < most)


def _or_worst(value: float, worst: float) -> float:
    return value if math.isfinite(value) else worst


COLUMNS = ("layer", "kind", "weight", "stored as", "dense", "params", "active", "bytes", "smaller", "error")
"""The columns of the table of layers."""


def times(ratio: float) -> str:
    """Format a ratio, with one decimal if it is small."""
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def cells(r: LayerRow) -> list[str]:
    """Return the cells of a row of the table."""
    name = r.name + (f" = {', '.join(r.tied)}" if r.tied else "")
    shapes = " + ".join("x".join(map(str, s)) for s in r.shapes)
    errors = ", ".join(f"{e:.3f}" for e in r.local_errors)
    return [
        name,
        r.kind,
        shapes,
        r.topology,
        f"{r.dense:,}",
        f"{r.params:,}",
        f"{r.active:,}",
        f"{r.bytes:,}",
        times(r.dense_bytes / max(r.bytes, 1)),
        errors,
    ]


def own_row(result: ModelCost, name: str = "this result") -> Baseline:
    """Return a result as a row among its baselines."""
    size, quality = result.compared_bytes, result.quality
    return Baseline(name=name, params=result.params, bytes=size, quality=quality, loss=result.loss)


def describe(row: Baseline, result: ModelCost) -> str:
    """Describe a row among baselines by the number that decides, and its size."""
    if row.quality is None:
        value = "no loss known" if row.loss is None else f"loss {row.loss:.4f}"
    else:
        value = f"{row.quality:.2f} %" if result.score is None else f"score {row.quality:.4g}"
    return f"{value}, {row.bytes:,} bytes{' in a file' if result.file_bytes is not None else ''}"


def baseline_columns(result: ModelCost) -> tuple[str, ...]:
    """Return the columns of the table of baselines, with the bytes that are compared."""
    size = "bytes of parameters" if result.file_bytes is None else "bytes in a file"
    return ("model", "parameters", size, "quality", "test loss")


def baseline_cells(before: ModelCost, after: ModelCost, baselines: Sequence[Baseline]) -> list[list[str]]:
    """Return the cells of the table of baselines, with the dense model and the result first."""
    rows = [own_row(before, "the dense model"), own_row(after), *baselines]
    return [
        [
            row.name,
            f"{row.params:,}",
            f"{row.bytes:,}",
            ""
            if row.quality is None
            else (f"{row.quality:.4g}" if after.score is not None else f"{row.quality:.2f} %"),
            "" if row.loss is None else f"{row.loss:.4f}",
        ]
        for row in rows
    ]
