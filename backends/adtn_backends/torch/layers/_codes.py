"""Codes of rounded generators as tensors."""

from __future__ import annotations

import numpy as np
import torch
from adtn._typing import Float, Int
from adtn.precision import (
    Bits,
    Codes,
    Parts,
    Straight,
    decoded,
    gains_shape,
    in_groups,
    order_in_groups,
    rounded_again,
    rounded_through,
)
from torch import nn

_DTYPES = {
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "float16": torch.float16,
    "float32": torch.float32,
}
_BITS = Bits(
    view=lambda x, dtype: x.view(_DTYPES[dtype]),
    cast=lambda x, dtype: x.to(_DTYPES[dtype]),
    join=lambda arrays, axis: torch.cat(arrays, axis),
    stack=lambda arrays, axis: torch.stack(arrays, axis),
    count=lambda n, like: torch.arange(n, dtype=torch.int32, device=like.device),
    sort=lambda x, end: torch.argsort(x, stable=True),
    invert=lambda x: torch.empty_like(x).scatter_(0, x, torch.arange(len(x), device=x.device)),
    take=lambda x, indices: x.index_select(1, indices),  # three times as fast as x[:, indices]
)
_STRAIGHT = Straight(
    clip=torch.clamp,
    round=torch.round,
    stop=lambda x: x.detach(),
    repeat=lambda x, n: x.repeat_interleave(n, 1),
    take=lambda x, indices: x.index_select(1, indices),
)


def tensor_of(codes: Codes) -> Int[torch.Tensor, " bytes"]:
    """Copy the bytes of codes to a tensor."""
    return torch.tensor(np.array(codes.data))


def codes_of(data: Int[torch.Tensor, " bytes"], parts: Parts) -> Codes:
    """Copy a tensor of bytes to codes on the host."""
    return Codes(parts.shape, parts.precision, data.detach().cpu().numpy())


def decode(data: Int[torch.Tensor, " bytes"], parts: Parts, dtype: torch.dtype) -> Float[torch.Tensor, "..."]:
    """Decode a tensor of bytes on its device, without float64, which some devices lack; entropy codes on the host."""
    if not parts.precision.is_coded:
        return decoded(data, parts, _BITS).to(dtype)
    if data.is_meta:
        return torch.empty(parts.shape, dtype=dtype, device=data.device)
    return torch.from_numpy(codes_of(data, parts).decode()).to(data.device, dtype)


def decode_in_groups(data: Int[torch.Tensor, " bytes"], parts: Parts, dtype: torch.dtype) -> Float[torch.Tensor, "..."]:
    """Decode ordered integers with their columns group by group, in the order of :class:`Orders`."""
    return in_groups(data, parts, _BITS).reshape(parts.shape).to(dtype)


class Orders:
    """The columns of the first group, of the second and so on, read again where the codes have changed."""

    def __init__(self) -> None:
        self._read: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, data: Int[torch.Tensor, " bytes"], parts: Parts) -> Int[torch.Tensor, " columns"]:
        """Read the order; on the CPU only if it is another one, while others would wait for the comparison."""
        stored = data[parts.order]
        if data.device.type != "cpu":
            return order_in_groups(data, parts, _BITS)
        if self._read is None or not torch.equal(self._read[0], stored):
            with torch.inference_mode(False), torch.no_grad():
                # half as large as the indices of the sort
                self._read = stored.clone(), order_in_groups(data, parts, _BITS).to(torch.int32)
        return self._read[1]


class TrainedCodes(nn.Module):
    """An array that is trained with the values that would be stored; see :func:`adtn.precision.rounded_through`.

    Floating-point formats are so exact that they are rounded at the end only.

    Parameters
    ----------
    data : torch.Tensor
        The bytes of the codes at the start.
    parts : Parts
        The places of their parts.
    """

    def __init__(self, data: Int[torch.Tensor, " bytes"], parts: Parts) -> None:
        super().__init__()
        self.start, self.parts, device = codes_of(data, parts), parts, data.device
        self.shift = self.start.shift
        self.values = nn.Parameter(decode(data, parts, torch.float32))
        if parts.precision.is_coarse:
            self.gains = nn.Parameter(torch.ones(gains_shape(parts), device=device))
            self.scales: torch.Tensor
            self.zeros: torch.Tensor
            self.groups: torch.Tensor | None
            self.register_buffer("scales", torch.tensor(self.start.scales, device=device))
            self.register_buffer("zeros", torch.tensor(self.start.zeros, device=device))
            groups = torch.tensor(self.start.groups, device=device) if parts.is_ordered else None
            self.register_buffer("groups", groups)

    def forward(self) -> Float[torch.Tensor, "..."]:
        """Return the values."""
        if not self.parts.precision.is_coarse:
            return self.values
        scales = self.gains * self.scales
        return rounded_through(self.values, scales, self.zeros, self.parts, _STRAIGHT, self.shift, self.groups)

    def rounded(self) -> Int[torch.Tensor, " bytes"]:
        """Return the bytes of the codes."""
        gains = self.gains.detach().cpu().numpy() if self.parts.precision.is_coarse else None
        return tensor_of(rounded_again(self.start, self.values.detach().cpu().numpy(), gains)).to(self.values.device)
