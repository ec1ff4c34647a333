"""Single methods of compression, each alone for a whole model: factorised forms, integers, and both.

Each method returns one generator per weight; weights without one stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import adtn
from adtn import Generator, LowRank, Precision
from adtn.compression import dense_generator, model_of, rounded_in_metric
from adtn.errors import CompressError
from adtn.precision import stored_bytes
from adtn.topology import Topology
from case import Case

Generators = dict[str, Generator]
_TRIES = 5  # allocations of parameters until the bytes after rounding fit
_CLOSE = 0.95  # of the budget, where no larger choice is tried


@dataclass(frozen=True, kw_only=True)
class Factorised:
    """A form whose ranks are allocated over the layers by the search of ``adtn.compress``.

    Parameters
    ----------
    convolutions : Topology
        The form of convolutions; matrices are low-rank pairs.
    precision : Precision, optional
        The precision to which everything is rounded afterwards, also the weights that the search left dense.
    """

    convolutions: Topology
    precision: Precision | None = None

    def fits(self, case: Case, ratio: float) -> bool:
        """Return whether the method has something to do at this ratio, and is not another one for this model."""
        has_convolutions = any(len(shape) > 2 for shape in case.weights().values())
        is_low_rank = self.convolutions == LowRank()
        return (is_low_rank or has_convolutions) and (self.precision is None or self._share(ratio) > 1.0)

    def generators(self, case: Case, ratio: float) -> Generators:
        """Compress within ``1 / ratio`` of the bytes of the layers."""
        if self.precision is None:
            return self._allocated(case, ratio)
        most = 4 * case.sizes()[1] / ratio
        share, best = self._share(ratio), None
        for _ in range(_TRIES):
            found = self._allocated(case, max(share, 1.0))
            size = self._rounded_bytes(case, found)
            if size <= most and (best is None or size > best[0]):
                best = size, found
            if _CLOSE * most <= size <= most or (share < 1.0 and size < most):
                break
            share *= 1.01 * size / most
        if best is None:
            raise CompressError(f"Found no ranks with at most {most:.0f} bytes in {self.precision}.")
        return rounded(case, best[1], self.precision)

    def _share(self, ratio: float) -> float:
        """Return about the ratio of parameters that has this ratio of bytes; scales take one bit per entry."""
        return ratio * (self.precision.bits + 1.0) / 32.0 if self.precision is not None else ratio

    def _allocated(self, case: Case, ratio: float) -> Generators:
        params, entries = case.sizes()
        config = adtn.Config(
            targets=case.targets,
            exclude=case.exclude,
            candidates=(LowRank(),),
            layers={"Conv2d": {"candidates": (self.convolutions,)}},
            precisions=(),
            recipe=("closed-form",),
        )
        budget = adtn.Budget(params=params - entries + int(entries / ratio))
        data = list(islice(case.train(0), 24))
        model, held = case.fresh().model, case.validation[:8]
        return adtn.compress(model, config, budget=budget, data=data, validation=held, progress=False).generators

    def _rounded_bytes(self, case: Case, found: Generators) -> int:
        """Return the bytes of the layers after rounding, without rounding."""
        assert self.precision is not None, "only called to round"
        shapes = case.weights()
        size = 4 * (case.sizes()[1] - sum(math.prod(shape) for shape in shapes.values()))
        for name, shape in shapes.items():
            cores = [p.shape for p in found[name].params.values()] if name in found else [shape]
            size += sum(stored_bytes(core, self.precision.of(core)) for core in cores)
        return size


@dataclass(frozen=True, kw_only=True)
class Integers:
    """All weights as integers of one format.

    Parameters
    ----------
    precision : Precision
    feedback : bool
        Whether errors are fed back to entries that are not rounded yet, in the metric of the inputs, as GPTQ does.
    """

    precision: Precision
    feedback: bool = True

    def generators(self, case: Case, ratio: float | None = None) -> Generators:
        """Round all weights."""
        return rounded(case, {}, self.precision, feedback=self.feedback)


def rounded(case: Case, generators: Mapping[str, Generator], precision: Precision, feedback: bool = True) -> Generators:
    """Round generators, and dense weights that have none, in the metric of the inputs of their layers."""
    model, names = model_of(case.model, None), list(case.weights())
    moments = model.second_moments(names, case.calibration) if feedback else {}
    found: Generators = {}
    for name in names:
        weight = model.weight(name)
        generator = generators[name] if name in generators else dense_generator(weight)
        found[name] = rounded_in_metric(generator, precision, weight, moments.get(name))
    return found


FACTORISED: Mapping[str, Factorised] = {
    "low rank": Factorised(convolutions=LowRank()),
    "low rank int8": Factorised(convolutions=LowRank(), precision=Precision("int8", 128)),
    "low rank int4": Factorised(convolutions=LowRank(), precision=Precision("int4", 128)),
    "spatial": Factorised(convolutions=LowRank(split="spatial")),
    "spatial int4": Factorised(convolutions=LowRank(split="spatial"), precision=Precision("int4", 128)),
    "Tucker-2": Factorised(convolutions=adtn.Tucker()),
    "TT": Factorised(convolutions=adtn.TT()),
}
_FORMATS = ("int8/128", "int4/32", "int4/64", "int4/128", "int3/32", "int3/64", "int3/128", "int2/32", "int2/64")
INTEGERS: Mapping[str, Integers] = {
    **{name: Integers(precision=Precision(name[:4], int(name[5:]))) for name in _FORMATS},  # pyright: ignore[reportArgumentType]
    **{
        f"coded {rate:g}": Integers(precision=Precision("coded", rate=rate)) for rate in (1.5, 2.0, 2.5, 3.0, 4.0, 4.25)
    },
    "nearest coded 4.25": Integers(precision=Precision("coded", rate=4.25), feedback=False),
    "nearest int4/32": Integers(precision=Precision("int4", 32), feedback=False),
    "nearest int4/64": Integers(precision=Precision("int4", 64), feedback=False),
    **{name: Integers(precision=Precision.named(name)) for name in ("int4/64 ordered", "int4/128 ordered")},
    "nearest int4/64 ordered": Integers(precision=Precision("int4", 64, ordered=True), feedback=False),
}
