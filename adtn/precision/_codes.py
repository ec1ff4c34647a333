"""An array in a precision: its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import shown
from .._typing import Float, Int, Shape
from ..errors import PrecisionError
from ._decode import Bits, decoded, unpacked
from ._precision import Parts, Precision, parts_of

NUMPY = Bits(
    lambda x, dtype: np.ascontiguousarray(x).view(np.dtype(dtype).newbyteorder("<")),
    lambda x, dtype: x.astype(dtype),
    lambda arrays, axis: np.concatenate(arrays, axis),
    lambda arrays, axis: np.stack(arrays, axis),
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
        data = np.array(self.data)
        expected = parts_of(self.shape, self.precision).nbytes
        if data.dtype != np.uint8 or data.shape != (expected,):
            raise PrecisionError(
                f"Got {shown(self.data)} as {self.precision.format} codes of the shape {self.shape}; "
                f"expected {expected} bytes. Pass the data that round_to made."
            )
        data.setflags(write=False)
        object.__setattr__(self, "data", data)

    def __repr__(self) -> str:
        return f"Codes({'x'.join(map(str, self.shape))}, {self.precision}, {self.nbytes:,} bytes)"

    def __reduce__(self) -> tuple[Any, ...]:
        return Codes, (self.shape, self.precision, self.data)  # copies are read-only as well

    @classmethod
    def blank(cls, shape: Shape, precision: Precision) -> Codes:
        """Make the codes of an array of zeros."""
        return cls(shape, precision, np.zeros(parts_of(shape, precision).nbytes, np.uint8))

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.data.size

    @property
    def integers(self) -> Int[np.ndarray, "rows columns"]:
        """The integers, from 0 to ``2**bits - 1``; none for floating-point formats."""
        parts = self._parts()
        n = parts.rows * parts.columns
        return unpacked(self.data[parts.entries], n, self.precision.bits, NUMPY).reshape(parts.rows, parts.columns)

    @property
    def zeros(self) -> Int[np.ndarray, "rows groups"]:
        """The zero points: the integers that stand for zero."""
        parts = self._parts()
        n = parts.rows * parts.groups
        return unpacked(self.data[parts.zeros], n, self.precision.bits, NUMPY).reshape(parts.rows, parts.groups)

    @property
    def scales(self) -> Float[np.ndarray, "rows groups"]:
        """The steps between neighbouring integers, as float32."""
        parts = self._parts()
        assert parts.exponent is not None
        scales = NUMPY.view(self.data[parts.scales], "float16").astype(np.float32)
        exponent = int(self.data[parts.exponent]) - 127
        return np.ldexp(scales, exponent).reshape(parts.rows, parts.groups)

    def _parts(self) -> Parts:
        if not self.precision.is_integer:
            raise PrecisionError(f"Got codes of {self.precision.format}, which have no integers; call decode instead.")
        return parts_of(self.shape, self.precision)

    def decode(self) -> Float[np.ndarray, "..."]:
        """Return the array as float32."""
        return decoded(self.data, self.shape, self.precision, NUMPY)
