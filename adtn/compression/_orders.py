"""Orders of columns before they are rounded in groups, kept where samples that did not choose them show a gain.

The second moment of one half of the samples chooses the order of the columns of a weight, and the integers with and
without it; the error of the outputs is then compared in the second moment of the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .._typing import Float
from ..precision import Precision, order_of, parts_of, round_to
from ..topology import Dense
from ._config import Config
from ._ladder import Curve, Ladder
from ._local import LocalTask
from ._model import Layer, Model
from ._samples import first_samples, halved

_ROWS = 128  # that are rounded for a comparison, with an uncertainty of about 0.01; the order is that of all rows
_LEAST = 0.99  # ratio of squared errors, above which a gain could be one by chance

Moments = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Orders:
    """The comparison of orders by samples that did not choose them.

    Parameters
    ----------
    moments : callable
        Returns the second moments of the inputs of weights in two halves of the samples, by name.
    """

    moments: Callable[[], tuple[Moments, Moments]]

    @cached_property
    def _halves(self) -> tuple[Moments, Moments]:
        return self.moments()

    def gains(self, task: LocalTask, precisions: Iterable[Precision]) -> dict[Precision, float]:
        """Return the squared errors with an order over those without, for all precisions in which they are smaller.

        Without inputs, the errors are those of the weight; with inputs that cannot be halved, there are none.
        """
        if task.moment is None:
            return order_gains(task.weight, None, precisions)
        first, second = (half.get(task.name) for half in self._halves)
        return {} if first is None or second is None else order_gains(task.weight, (first, second), precisions)


def orders_for(
    model: Model, layers: Sequence[Layer], tasks: Mapping[str, LocalTask], config: Config, data: Iterable[Any] | None
) -> Orders | None:
    """Return the comparison of orders for these layers, or ``None`` if the config wants none."""
    if not config.compares_orders:
        return None
    names = [name for layer in layers if not layer.group for name in layer.weights if tasks[name].moment is not None]

    def moments() -> tuple[Moments, Moments]:
        if not names or data is None:
            return {}, {}
        halves = halved(list(first_samples(data, config.samples)))
        return tuple(model.second_moments(names, half, config.samples) if half else {} for half in halves)  # type: ignore[return-value]

    return Orders(moments=moments)


def order_gains(
    weight: Float[np.ndarray, "*shape"],
    halves: tuple[Float[np.ndarray, "n_in n_in"], Float[np.ndarray, "n_in n_in"]] | None,
    precisions: Iterable[Precision],
) -> dict[Precision, float]:
    """Return the squared errors with an order over those without, for all precisions in which they are smaller.

    Parameters
    ----------
    weight : array
    halves : tuple of array or None
        The second moments of the inputs that choose, and those that judge; without them, the errors are those of the
        weight.
    precisions : iterable of Precision

    Examples
    --------
    >>> weight = np.random.default_rng(0).standard_normal((64, 64)) * np.tile([1.0, 0.2], 32)
    >>> gains = order_gains(weight, None, [Precision("int4", group=32), Precision("float16")])
    >>> [(str(precision), gain < 0.8) for precision, gain in gains.items()]
    [('int4/32', True)]
    """
    every = np.asarray(weight, np.float32).reshape(len(weight), -1)
    rows = every[np.sort(np.random.default_rng(0).permutation(len(every))[:_ROWS])]
    chooses, judges = (None, None) if halves is None else (np.asarray(half, np.float64) for half in halves)

    def error2(found: np.ndarray) -> float:
        away = found.astype(np.float64) - rows
        return float(np.vdot(away if judges is None else away @ judges, away))

    orders: dict[int | None, np.ndarray] = {}
    gains: dict[Precision, float] = {}
    for precision in precisions:
        if not _has_orders(every.shape, precision):
            continue
        if precision.group not in orders:
            orders[precision.group] = order_of(every, precision, chooses)
        within = replace(precision, along="rows")  # also where few rows are rounded
        plain = error2(round_to(rows, within, chooses).decode())
        ordered = replace(within, ordered=True)
        found = error2(round_to(rows, ordered, chooses, order=orders[precision.group]).decode())
        if found < _LEAST * plain:
            gains[precision] = found / plain
    return gains


def with_orders(ladder: Ladder, task: LocalTask, orders: Orders | None, others: Sequence[Ladder] = ()) -> Ladder:
    """Return the ladder of a weight with ordered integers, where these have smaller errors.

    Parameters
    ----------
    ladder : Ladder
    task : LocalTask
        With the weight and the second moment of its inputs.
    orders : Orders or None
        The comparison; without it the ladder stays as it is.
    others : sequence of Ladder
        Weights that are probed in its place: then only precisions that are better for all of them are offered, and a
        single one of these is compared.
    """
    if orders is None:
        return ladder
    plain = {c.family.precision: c for c in ladder.curves if isinstance(c.family.topology, Dense)}
    plain = {p: c for p, c in plain.items() if p is not None and _has_orders(task.weight.shape, p)}
    for other in others:
        known = {c.family.precision for c in other.curves}
        plain = {p: c for p, c in plain.items() if replace(p, ordered=True) in known}
    compared = sorted(plain, key=lambda p: (p.bits, p.group))
    if others:
        compared = compared[len(compared) // 2 :][:1]
    gains = orders.gains(task, compared)
    if others and gains:
        gains = dict.fromkeys(plain, next(iter(gains.values())))
    added = [
        Curve(
            family=replace(plain[p].family, precision=replace(p, ordered=True)),
            errors={n: gain * e for n, e in plain[p].errors.items()},
        )
        for p, gain in gains.items()
    ]
    return replace(ladder, curves=[*ladder.curves, *added])


def _has_orders(shape: tuple[int, ...], precision: Precision) -> bool:
    """Return whether a weight has several groups of columns in this precision, which are not ordered yet."""
    if not precision.is_integer or precision.group is None or precision.ordered:
        return False
    parts = parts_of(shape, replace(precision, ordered=True))
    return parts.is_ordered and not parts.turned
