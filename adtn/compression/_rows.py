"""The rows of a report: one replaced layer, and the model as a whole."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """A replaced layer.

    Parameters
    ----------
    name, kind : str
    shapes : tuple of tuple of int
        The shapes of its weights.
    topology : str
    dense, params, active : int
        Entries of the dense weights, parameters of the generators, and those that can influence the weights.
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
    local_errors: list[float]
    tied: tuple[str, ...] = ()
    sensitivity: float | None = None
    predicted_seconds: float | None = None

    @property
    def ratio(self) -> float:
        """The number of dense entries per parameter."""
        return self.dense / max(self.params, 1)


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """The costs of the whole model, with time and memory of a forward pass, as a smaller model need not be faster."""

    params: int
    bytes: int
    accuracy: float | None
    forward_seconds: float | None
    forward_peak_bytes: int | None
    loss: float | None = None
    score: float | None = None

    @property
    def quality(self) -> float | None:
        """The user's score, or the accuracy if there is no score."""
        return self.accuracy if self.score is None else self.score


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
        times(r.ratio),
        errors,
    ]
