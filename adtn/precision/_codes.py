"""An array in a precision: its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import shown
from .._typing import Float, Int, Shape
from ..errors import PrecisionError
from ._coded import SHIFTS, Stepped
from ._coded import decode as decode_matrix
from ._decode import Bits, decoded, in_groups, order_in_groups, positions, scales_of, unpacked
from ._precision import Parts, Precision, parts_of


def _sort(x: Int[np.ndarray, " n"], end: int) -> Int[np.ndarray, " n"]:
    narrow = x.astype(np.int16 if end <= 2**15 else np.int32)  # those of 16 bits are sorted by their digits
    return np.argsort(narrow, kind="stable")


def _invert(x: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    inverse = np.empty_like(x)
    inverse[x] = np.arange(len(x))
    return inverse


NUMPY = Bits(
    view=lambda x, dtype: x.view(dtype),
    cast=lambda x, dtype: x.astype(dtype),
    join=lambda arrays, axis: np.concatenate(arrays, axis),
    stack=lambda arrays, axis: np.stack(arrays, axis),
    count=lambda n, like: np.arange(n, dtype=np.int32),
    sort=_sort,
    invert=_invert,
    take=lambda x, indices: np.take(x, indices, 1),
)


@dataclass(frozen=True, eq=False, repr=False)
class Codes:
    """An array in a precision.

    Parameters
    ----------
    shape : tuple of int
        The shape of the array.
    precision : Precision
        Its precision.
    data : array of uint8
        All its bytes: the scales, the zero points, the entries and a common exponent.

    Raises
    ------
    PrecisionError
        If the bytes are not those of an array of this shape and precision.

    Examples
    --------
    >>> import numpy as np
    >>> from adtn.precision import Precision, round_to
    >>> codes = round_to(np.eye(8), Precision("int4"))
    >>> codes.nbytes, codes.decode().dtype
    (53, dtype('float32'))
    """

    shape: Shape
    precision: Precision
    data: Int[np.ndarray, " bytes"]

    def __post_init__(self) -> None:
        data = np.asarray(self.data)
        expected = parts_of(self.shape, self.precision).nbytes
        if data.dtype != np.uint8 or data.shape != (expected,):
            raise PrecisionError(
                f"Got {shown(self.data)} as {self.precision.format} codes of the shape {self.shape}; "
                f"expected {expected} bytes. Pass the data that round_to made."
            )
        if data.flags.writeable:
            data = data.copy()
            data.setflags(write=False)
        object.__setattr__(self, "data", data)

    def __repr__(self) -> str:
        return f"Codes({'x'.join(map(str, self.shape))}, {self.precision}, {self.nbytes:,} bytes)"

    def __reduce__(self) -> tuple[Any, ...]:
        return Codes, (self.shape, self.precision, np.array(self.data))  # which makes it read-only again

    def __deepcopy__(self, memo: dict[int, Any]) -> Codes:
        return self  # nothing in it can change

    @classmethod
    def blank(cls, shape: Shape, precision: Precision) -> Codes:
        """Make the codes of an array of zeros, which take no memory."""
        return cls(shape, precision, np.broadcast_to(np.uint8(0), parts_of(shape, precision).nbytes))

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.data.size

    @property
    def integers(self) -> Int[np.ndarray, "rows columns"]:
        """The integers, from 0 to ``2**bits - 1``, of both signs for entropy codes; none for floating-point formats.

        Where columns are ordered, they come group by group, in the :attr:`order`.
        """
        if self.precision.is_coded:
            return self.stepped().integers
        parts = self._parts()
        n = parts.rows * parts.columns
        return unpacked(self.data[parts.entries], n, self.precision.n_bits, NUMPY).reshape(parts.rows, parts.columns)

    @property
    def order(self) -> Int[np.ndarray, " columns"]:
        """The columns of the first group, of the second and so on."""
        parts = parts_of(self.shape, self.precision)
        return order_in_groups(self.data, parts, NUMPY) if parts.is_ordered else np.arange(parts.columns)

    @property
    def groups(self) -> Int[np.ndarray, " columns"]:
        """The group of each column."""
        return self._positions() // parts_of(self.shape, self.precision).group

    def _positions(self) -> Int[np.ndarray, " columns"]:
        parts = parts_of(self.shape, self.precision)
        return positions(self.data, parts, NUMPY) if parts.is_ordered else np.arange(parts.columns)

    @property
    def zeros(self) -> Float[np.ndarray, "rows groups"]:
        """The zero points: the integers that stand for zero; between two of them with half steps."""
        if self.precision.is_coded:
            return np.zeros((1, parts_of(self.shape, self.precision).columns), np.float32)
        parts = self._parts()
        n = parts.rows * parts.groups
        zeros = unpacked(self.data[parts.zeros], n, self.precision.n_bits, NUMPY).reshape(parts.rows, parts.groups)
        return zeros.astype(np.float32) * np.float32(self.precision.zero_step)

    @property
    def scales(self) -> Float[np.ndarray, "rows groups"]:
        """The steps between neighbouring integers, as float32; negative ones reverse the order of the values.

        Entropy codes have one for each column, ``(1, columns)``.
        """
        if self.precision.is_coded:
            return self.stepped().steps[None]
        parts = self._parts()
        return scales_of(self.data, parts, NUMPY)

    @property
    def shift(self) -> float:
        """The difference of integers and magnitudes in steps, zero but for entropy codes."""
        return self.stepped().shift / SHIFTS if self.precision.is_coded else 0.0

    def stepped(self) -> Stepped:
        """Return the integers with the steps of their columns, of entropy codes.

        Raises
        ------
        PrecisionError
            If the bytes are not those of such a matrix.
        """
        parts = parts_of(self.shape, self.precision)
        return decode_matrix(self.data, parts.rows, parts.columns)

    def _parts(self) -> Parts:
        if not self.precision.is_integer:
            raise PrecisionError(f"Got codes of {self.precision.format}, which have no integers; call decode instead.")
        return parts_of(self.shape, self.precision)

    def in_groups(self) -> Float[np.ndarray, "rows columns"]:
        """Return the matrix of integers with the columns in their :attr:`order`, as float32."""
        return in_groups(self.data, self._parts(), NUMPY)

    def decode(self) -> Float[np.ndarray, "..."]:
        """Return the array as float32."""
        if self.precision.is_coded:
            return self.stepped().decode().reshape(self.shape)
        return decoded(self.data, parts_of(self.shape, self.precision), NUMPY)
