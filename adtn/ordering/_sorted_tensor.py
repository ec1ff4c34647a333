"""A tensor that is stored as a permuted network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .._typing import Array, Float, Shape
from ..backends import check_device
from ..errors import OrderingError
from ..generator import Generator
from ..layout import Permutation
from ._bits import StoredBits, bits_of_permutation
from ._control import Control, control
from ._ordering import OfSlices, Order
from ._solve import Request


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SortedTensor:
    """A tensor as the output of a network that is read through permutations; :func:`adtn.einsort` makes it.

    Parameters
    ----------
    shape : tuple of int
        The shape of the tensor.
    generator : Generator
        The network with its permutations: a weight of the tensor's shape, or of a single axis if all entries are
        ordered. Without the signs, if these are stored apart.
    order : Order
        The order that was found.
    signs : array of uint8 or None
        The signs of the entries, eight per byte, 1 for negative ones.
    bits : StoredBits
        The number of bits by part.
    relative_error : float
        The norm of the difference to the tensor, over that of the tensor.
    weighted_error : float or None
        The same in the metric of the moment that was given, which is the relative error of the outputs for such inputs;
        ``None`` without a moment.
    source : array
        The tensor, for the control.
    request : Request
        What was asked for.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> tensor = np.kron(rng.standard_normal((8, 8)), rng.standard_normal((8, 8)))[rng.permutation(64)]
    >>> found = adtn.einsort(tensor, ordering="leaf", topology=adtn.MPO(), bytes=1024)
    >>> found.bits.total <= 8 * 1024, found.dense().shape, len(found.permutations)
    (True, (64, 64), 2)
    """

    shape: Shape
    generator: Generator
    order: Order
    signs: np.ndarray | None
    bits: StoredBits
    relative_error: float
    weighted_error: float | None
    source: Float[np.ndarray, "*shape"]
    request: Request

    def dense(self, device: str = "numpy:cpu", dtype: str | None = None) -> Float[Array, "*shape"]:
        """Generate the tensor, as an array of the framework of a device.

        Raises
        ------
        DeviceError, MissingDependencyError
            If the device or dtype is not available.
        """
        dtype = self.generator.dtype if dtype is None else dtype
        tensor = self.generator.weight(device, dtype).reshape(self.shape)
        if self.signs is None:
            return tensor
        backend, where = check_device(device, dtype)
        with backend.scope(dtype):
            return tensor * backend.asarray(self._factors(), where, dtype)

    def _factors(self) -> Float[np.ndarray, "*shape"]:
        assert self.signs is not None, "only called with signs"
        negative = np.unpackbits(self.signs, count=self.source.size).reshape(self.shape)
        return 1.0 - 2.0 * negative.astype(np.float64)

    @property
    def permutations(self) -> tuple[Permutation | None, ...]:
        """The permutations of the generator, one per axis; empty if nothing is ordered."""
        return self.generator.permutations

    @property
    def bits_per_entry(self) -> float:
        """The number of all bits over the number of entries."""
        return self.bits.total / self.source.size

    @cached_property
    def control(self) -> Control:
        """The gain of the order beside the gains of the same search on noise; computed when it is first read."""
        error = self.relative_error if self.weighted_error is None else self.weighted_error
        return control(self.source, self.request, error)

    def absorb(self, axis: int) -> tuple[SortedTensor, Permutation]:
        """Keep the tensor in the order of its network along an axis, which then costs no bits.

        Whatever is next to that axis must take over the order: a gather of the input for the last axis, or a
        neighbouring layer, see ``absorb_hidden`` and others in ``adtn_backends.torch``.

        Parameters
        ----------
        axis : int

        Returns
        -------
        SortedTensor
            The tensor ``permutation.permute(tensor, axis)``, with the control of the original one.
        Permutation
            The order of that axis.

        Raises
        ------
        OrderingError
            If the axis has no order of its own.

        Examples
        --------
        >>> import adtn, numpy as np
        >>> tensor = np.random.default_rng(0).standard_normal((16, 16))
        >>> found = adtn.einsort(tensor, ordering="norm", topology="tt", bytes=600)
        >>> rest, order = found.absorb(0)
        >>> bool(np.allclose(rest.dense(), order.permute(found.dense(), 0)))
        True
        """
        ways = self.request.ordering
        if (
            self.order.is_flat
            or not isinstance(ways, OfSlices)
            or not 0 <= axis < len(self.order.axes)
            or (moved := self.order.axes[axis]) is None
        ):
            raise OrderingError(f"Got axis={axis}, which has no order of its own; expected one in .permutations.")
        taken = Permutation(moved)
        cost = 0.0 if axis in ways.absorbed else bits_of_permutation(len(taken))
        left = tuple(None if k == axis else order for k, order in enumerate(self.order.axes))
        order = replace(self.order, axes=left, bits=self.order.bits - cost)
        signs = None if self.signs is None else np.packbits(taken.permute(self._factors(), axis).reshape(-1) < 0)
        rest = replace(
            self,
            generator=self.generator.with_permutations(order.permutations),
            order=order,
            signs=signs,
            bits=replace(self.bits, permutations=order.bits),
            request=replace(self.request, ordering=replace(ways, absorbed=(*ways.absorbed, axis))),
        )
        return rest, taken

    def __repr__(self) -> str:
        weighted = "" if self.weighted_error is None else f", weighted={self.weighted_error:.4f}"
        return (
            f"SortedTensor({'x'.join(map(str, self.shape))}, {self.request.ordering}, {self.generator.topology}, "
            f"legs={self.generator.layout.dims}, error={self.relative_error:.4f}{weighted}, "
            f"{self.bits_per_entry:.3f} bits per entry)"
        )

    def __str__(self) -> str:
        gen, n = self.generator, self.source.size
        parts = {name: getattr(self.bits, name) for name in ("cores", "scales", "permutations", "signs")}
        lines = [
            f"tensor          {'x'.join(map(str, self.shape))}",
            f"order           {self.request.ordering}",
            f"network         {gen.topology} on legs {gen.layout.dims}, {gen.precision or 'float32'}",
            f"relative error  {self.relative_error:.5f}",
            *([] if self.weighted_error is None else [f"  of outputs    {self.weighted_error:.5f}"]),
            f"bits per entry  {self.bits_per_entry:.4f}",
            *(f"  {name:<13} {bits / n:.4f}" for name, bits in parts.items() if bits),
        ]
        if "control" in self.__dict__:  # which is not computed to print it
            lines.append(f"control         {self.control}")
        return "\n".join(lines)
