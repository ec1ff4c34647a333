"""A finished prefix as bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from .._files import read_whole
from .._typing import Float, Int, Shape
from ..errors import KVCacheError
from ._ans import Coded
from ._pair import Pair
from ._stored import Stored

Coder = Literal["ans", "rice"]
"""Entropy coding by asymmetric numeral systems, or Golomb-Rice codes."""


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """The states of tokens in 8 bits, with one scale per vector.

    Parameters
    ----------
    codes : array, (tokens, layers, heads, channels)
        In int8; files of the first format have float16 here.
    scales : array, (tokens, layers, heads)
    """

    codes: np.ndarray
    scales: Float[np.ndarray, "tokens layers heads"]

    @classmethod
    def of(cls, x: Float[np.ndarray, "tokens layers heads channels"]) -> Rounded:
        """Round states."""
        scales = half(np.abs(x).max(-1, initial=0.0) / 127.0)
        divisors = np.maximum(scales.astype(np.float32), np.finfo(np.float16).smallest_subnormal)[..., None]
        return cls(codes=np.clip(np.rint(x / divisors), -127, 127).astype(np.int8), scales=scales)

    @property
    def values(self) -> Float[np.ndarray, "tokens layers heads channels"]:
        """The states, in float32."""
        return self.codes.astype(np.float32) * self.scales.astype(np.float32)[..., None]

    @property
    def nbytes(self) -> int:
        """The bytes of both arrays."""
        return self.codes.nbytes + self.scales.nbytes


@dataclass(frozen=True, kw_only=True)
class Parked(Stored):
    """The cache of a prefix, coded.

    Parameters
    ----------
    codec : str
        The digest of the codec.
    token_ids : array, (tokens,)
    shapes : Pair of tuple of int
        (layers, heads, channels) of keys and of values.
    sinks : Pair of Rounded
        The states of the first tokens.
    coded : Coded
        The states of all other tokens.
    others : mapping of str to array
        The states of layers that are not coded.
    step : int
        Of the quantisation, a point of the grid of steps.
    by_id : bool
        Whether earlier tokens of the same id predict later ones.
    is_even : bool
        Whether all tokens have the same step.
    coder : {"ans", "rice"}
    """

    file_kind: ClassVar[str] = "parked cache"
    file_format: ClassVar[int] = 2  # 1: sinks in float16, one step for all tokens

    codec: str
    token_ids: Int[np.ndarray, " tokens"]
    shapes: Pair[Shape]
    sinks: Pair[Rounded]
    coded: Coded
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    step: int
    by_id: bool
    is_even: bool
    coder: Coder

    @property
    def tokens(self) -> int:
        """The length of the prefix."""
        return len(self.token_ids)

    @property
    def values(self) -> int:
        """The number of values of the dense cache, without layers that are not coded."""
        return self.tokens * sum(int(np.prod(shape)) for shape in self.shapes)

    @property
    def bytes_by_part(self) -> dict[str, int]:
        """The bytes of the file by what they hold."""
        parts = {
            "coded": self.coded.nbytes,
            "sinks": self.sinks.k.nbytes + self.sinks.v.nbytes,
            "token ids": self.token_ids.nbytes,
            "layers that are not coded": sum(x.nbytes for x in self.others.values()),
        }
        return {**parts, "header": self.nbytes - sum(parts.values())}

    @property
    def bits_per_value(self) -> float:
        """The bits of the file divided by the number of values of the dense cache."""
        return 8 * self.nbytes / self.values

    @property
    def ratio(self) -> float:
        """The size of the cache in bfloat16 divided by that of the file."""
        return 16 / self.bits_per_value

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Parked:
        """Read a file that :meth:`save` has written.

        Raises
        ------
        FileFormatError
            If the file is damaged, or is something else.
        """
        return cls.from_bytes(read_whole(path, "a parked cache"))

    def _content(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {
            "token_ids": self.token_ids,
            "words": self.coded.words,
            "beyond": self.coded.beyond,
            **{f"sinks.{kind}": own.codes for kind, own in zip("kv", self.sinks, strict=True)},
            **{f"sinks.{kind}.scales": own.scales for kind, own in zip("kv", self.sinks, strict=True)},
            **{f"layers.{name}": x for name, x in self.others.items()},
        }
        header = {
            "codec": self.codec,
            "shapes": list(self.shapes),
            "step": self.step,
            "by_id": self.by_id,
            "is_even": self.is_even,
            "coder": self.coder,
        }
        return {name: x for name, x in arrays.items() if x.size or name == "token_ids"}, header

    @classmethod
    def _of_content(cls, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> Parked:
        shapes = [tuple(int(n) for n in shape) for shape in header["shapes"]]

        def sinks(kind: str, shape: Shape) -> Rounded:
            codes = arrays.get(f"sinks.{kind}", np.empty((0, *shape), np.int8))
            return Rounded(
                codes=codes, scales=arrays.get(f"sinks.{kind}.scales", np.ones(codes.shape[:-1], np.float16))
            )

        return cls(
            codec=str(header["codec"]),
            token_ids=arrays["token_ids"],
            shapes=Pair(k=shapes[0], v=shapes[1]),
            sinks=Pair(k=sinks("k", shapes[0]), v=sinks("v", shapes[1])),
            coded=Coded(
                words=arrays.get("words", np.empty(0, np.uint32)),
                beyond=arrays.get("beyond", np.empty(0, np.int32)),
            ),
            others={n.removeprefix("layers."): x for n, x in arrays.items() if n.startswith("layers.")},
            step=int(header["step"]),
            by_id=bool(header["by_id"]),
            is_even=bool(header.get("is_even", True)),
            coder=header["coder"],
        )

    def __repr__(self) -> str:
        return f"Parked({self.tokens:,} tokens, {self.nbytes:,} bytes, {self.ratio:.1f} times smaller than bfloat16)"


def small_ids(token_ids: Any) -> Int[np.ndarray, " tokens"]:
    """Return token ids of one sequence in the smallest dtype.

    Raises
    ------
    KVCacheError
        If they are not a list of non-negative integers.
    """
    ids = np.asarray(token_ids)
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or (ids.size and int(ids.min()) < 0):
        raise KVCacheError(
            f"Got token_ids of shape {ids.shape} and dtype {ids.dtype}; expected the ids of one sequence, (tokens,)."
        )
    return ids.astype(np.uint16 if ids.size == 0 or int(ids.max()) < 1 << 16 else np.uint32)


def half(x: np.ndarray) -> np.ndarray:
    """Round to float16, or to float32 where that cannot hold the values."""
    return x.astype(np.float16 if np.abs(x).max(initial=0.0) < 6e4 else np.float32)
