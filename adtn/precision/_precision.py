"""The precision of a stored array: its format, and how many entries share a scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from .._checks import Range, check_fields, shown
from .._typing import Array, Float, Shape
from ..errors import PrecisionError
from ._coded import coded_bytes
from ._packing import packed_bytes

Format = Literal["float32", "float16", "bfloat16", "int8", "int4", "int3", "int2", "coded"]
_SMALL = 64
_ORDERED = " ordered"
_FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Precision:
    """A format in which the entries of an array are stored: floating-point numbers, integers, or entropy codes.

    An array is viewed as a matrix: its first axis is the rows, the others are the columns; an array of one axis is one
    row. A group is a run of columns within a row, and the last one of a row may be shorter. Where a row is shorter than
    a group, and than a column, groups run along the columns instead, so that a factor of low rank has few scales.

    Entropy codes (``"coded"``) take fewer bits than integers of a fixed length for the same error, and any number of
    bits; they are decoded on the host when a layer is made, so that files become smaller, and memory does not.

    Parameters
    ----------
    format : {"float32", "float16", "bfloat16", "int8", "int4", "int3", "int2", "coded"}
        The format of an entry. Integers of ``b`` bits have a scale in float16 and a zero point of ``b`` bits per group,
        which are ``b + (16 + b) / group`` bits per entry.
    group : int, optional
        The number of entries of a group, for integers only; by default, a whole row.
    along : {"longer", "rows"}
        The side along which groups run where rows are shorter than a group: the longer one, or always rows.
    rate : float, optional
        The bits of an entry, for ``"coded"`` only, which needs it: all bits but for 12 bytes per array.
    ordered : bool
        Whether columns of similar entries share a group, wherever they are, for groups of integers only. All rows have
        the same groups of columns, which take ``log2(columns / group)`` bits per column, rounded up.

    Raises
    ------
    PrecisionError
        If the format is unknown, or the group is not a positive number, or given for floating-point numbers, or missing
        for an order, or the rate is missing, or given for another format.

    References
    ----------
    Gish and Pierce (1968), Asymptotically efficient quantizing. Duda (2013), arXiv:1311.2540.

    Examples
    --------
    >>> import adtn
    >>> precision = adtn.Precision("int4", group=64)
    >>> str(precision), precision.bits
    ('int4/64', 4)
    >>> adtn.Precision.from_json(precision.to_json()) == precision
    True
    >>> adtn.Precision("coded", rate=2.5).bits
    2.5
    >>> str(adtn.Precision("int4", group=64, ordered=True))
    'int4/64 ordered'
    """

    format: Format
    group: Annotated[int, Range(1)] | None = None
    along: Literal["longer", "rows"] = "longer"
    rate: Annotated[float, Range(0.5, 12.0)] | None = None
    ordered: bool = False

    def __post_init__(self) -> None:
        check_fields(self, PrecisionError)
        if self.group is not None and not self.is_integer:
            raise PrecisionError(
                f"Got group={self.group} for {self.format}, which has no scales; pass an integer format."
            )
        if self.is_coded != (self.rate is not None):
            raise PrecisionError(
                f"Got rate={self.rate} for {self.format!r}; expected bits per entry for 'coded', such as rate=3.0, and "
                "none for others."
            )
        if self.ordered and self.group is None:
            raise PrecisionError(f"Got ordered=True for {self.format} without a group; pass an integer format and one.")

    def __str__(self) -> str:
        own = self.group if self.rate is None else f"{self.rate:g}"
        name = self.format if own is None else f"{self.format}/{own}"
        return f"{name}{_ORDERED}" if self.ordered else name

    @property
    def is_integer(self) -> bool:
        """Whether entries are integers of a fixed length with scales."""
        return self.format not in _FLOAT_BYTES and not self.is_coded

    @property
    def is_coded(self) -> bool:
        """Whether entries are entropy codes."""
        return self.format == "coded"

    @property
    def bits(self) -> float:
        """The number of bits of an entry, without those of the scales."""
        if self.rate is not None:
            return self.rate
        return int(self.format[3:]) if self.is_integer else 8 * _FLOAT_BYTES[self.format]

    @property
    def is_coarse(self) -> bool:
        """Whether rounding changes so much that errors are fed back."""
        return self.is_integer or self.is_coded

    @property
    def n_bits(self) -> int:
        """The number of bits of an integer of a fixed length."""
        return int(self.format[3:])

    @property
    def zero_step(self) -> float:
        """The unit of zero points; with four values only, half steps make a symmetric group 7 percent more exact."""
        return 0.5 if self.format == "int2" else 1.0

    def of(self, shape: Shape) -> Precision:
        """Return the precision of a core of this shape in a generator of this precision.

        Cores of fewer than 64 entries are stored as float16, as their scales would need as much, and errors in them
        reach the whole weight; a single entry is stored as float32.
        """
        size = math.prod(shape)
        if size == 1:
            return Precision("float32")
        return Precision("float16") if size < _SMALL and self.bits < 16 else self

    @classmethod
    def named(cls, name: str) -> Precision:
        """Make the precision with this name: its format, and behind a slash its group, or its rate.

        Raises
        ------
        PrecisionError
            If there is none.

        Examples
        --------
        >>> [str(Precision.named(name)) for name in ("float16", "int4/32", "int4/32 ordered", "coded/2.5")]
        ['float16', 'int4/32', 'int4/32 ordered', 'coded/2.5']
        """
        format, slash, rest = name.removesuffix(_ORDERED).partition("/")
        try:
            own: dict[str, Any] = (
                {"rate": float(rest)} if format == "coded" else {"group": int(rest) if slash else None}
            )
        except ValueError as error:
            raise PrecisionError(
                f"Got the precision {name!r}; expected a name such as 'float16', 'int8', 'int4/64' or 'coded/2.5'."
            ) from error
        return cls(format, **own, ordered=name.endswith(_ORDERED))  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for :meth:`from_json`."""
        if self.rate is not None:
            return {"format": self.format, "rate": self.rate}
        if self.group is None:
            return {"format": self.format}
        ordered = {"ordered": True} if self.ordered else {}
        return {"format": self.format, "group": self.group, "along": self.along, **ordered}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Precision:
        """Make the precision that :meth:`to_json` described.

        Raises
        ------
        PrecisionError
            If the values describe none.
        """
        if not isinstance(values, Mapping) or not {"format"} <= set(values) <= {
            "format",
            "group",
            "along",
            "rate",
            "ordered",
        }:
            raise PrecisionError(
                f"Got {shown(values)}; expected a format ({', '.join(get_args(Format))}) and a group or a rate."
            )
        if "group" not in values:
            return cls(values["format"], rate=values.get("rate"))
        along, ordered = values.get("along", "rows"), values.get("ordered", False)  # older files do not say it
        return cls(values["format"], values["group"], along, ordered=ordered)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The places of the parts of a stored array among its bytes.

    Parameters
    ----------
    shape : tuple of int
        The shape of the array.
    precision : Precision
        Its precision.
    rows, columns : int
        The array as a matrix, whose rows are divided into groups.
    turned : bool
        Whether that is the transposed matrix of the array.
    group : int
        The number of columns of a group.
    groups : int
        The number of groups of a row.
    scales, zeros, entries, order : slice
        The bytes of the scales (float16), of the zero points, of the entries, and of the groups of columns; the first
        two are empty for floating-point formats, and the last one is empty unless columns are ordered. The numbers of
        the groups are stored as planes of one bit per column, the low bits first.
    exponent : int or None
        The place of the byte with the exponent of a common power of two, as in the bits of a float32.
    nbytes : int
        The number of all bytes.
    """

    shape: Shape
    precision: Precision
    rows: int
    columns: int
    turned: bool
    group: int
    groups: int
    scales: slice
    zeros: slice
    entries: slice
    order: slice
    exponent: int | None
    nbytes: int

    @property
    def is_ordered(self) -> bool:
        """Whether the groups of columns are stored, as they are not runs; a single group needs no order."""
        return self.order.stop > self.order.start


def matrix_of(x: Array, parts: Parts) -> Float[Array, "rows columns"]:
    """Return an array of any framework as the matrix whose rows are divided into groups."""
    return x.reshape(parts.columns, parts.rows).T if parts.turned else x.reshape(parts.rows, parts.columns)


def array_of(matrix: Float[Array, "rows columns"], parts: Parts) -> Array:
    """Return the array of a matrix, the inverse of :func:`matrix_of`."""
    return (matrix.T if parts.turned else matrix).reshape(parts.shape)


def parts_of(shape: Shape, precision: Precision) -> Parts:
    """Compute where the parts of an array of this shape are.

    As float16 cannot hold scales of every size, they have a common power of two.
    """
    rows = shape[0] if len(shape) > 1 else 1
    size = math.prod(shape)
    columns = math.prod(shape[1:]) if len(shape) > 1 else size
    turned = precision.group is not None and precision.along == "longer" and columns < min(precision.group, rows)
    rows, columns = (columns, rows) if turned else (rows, columns)
    group = 1 if precision.is_coded else min(precision.group or columns, columns) or 1
    groups = -(-columns // group)
    scales = zeros = 0
    if precision.is_integer:
        scales = 2 * rows * groups
        zeros = scales + packed_bytes(rows * groups, precision.n_bits)
        entries = zeros + packed_bytes(size, precision.n_bits)
    elif precision.rate is not None:
        entries = coded_bytes(size, precision.rate)
    else:
        entries = size * _FLOAT_BYTES[precision.format]
    planes = (groups - 1).bit_length() if precision.ordered else 0
    order = entries + planes * packed_bytes(columns, 1)
    has_exponent = precision.is_integer or precision.format == "float16"
    return Parts(
        shape=tuple(shape),
        precision=precision,
        rows=rows,
        columns=columns,
        turned=turned,
        group=group,
        groups=groups,
        scales=slice(0, scales),
        zeros=slice(scales, zeros),
        entries=slice(zeros, entries),
        order=slice(entries, order),
        exponent=order if has_exponent else None,
        nbytes=order + has_exponent,
    )


def stored_bytes(shape: Shape, precision: Precision) -> int:
    """Return the number of bytes of an array of this shape, without making one.

    Examples
    --------
    >>> stored_bytes((64, 128), Precision("int4", group=64)) * 8 / (64 * 128)
    4.3134765625
    """
    return parts_of(shape, precision).nbytes
