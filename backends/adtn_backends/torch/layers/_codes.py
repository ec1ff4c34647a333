"""Codes of rounded generators as tensors."""

from __future__ import annotations

import numpy as np
import torch
from adtn._typing import Float, Int
from adtn.precision import Bits, Codes, Parts, decoded

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
)


def tensor_of(codes: Codes) -> Int[torch.Tensor, " bytes"]:
    """Copy the bytes of codes to a tensor."""
    return torch.tensor(np.array(codes.data))


def codes_of(data: Int[torch.Tensor, " bytes"], parts: Parts) -> Codes:
    """Copy a tensor of bytes to codes on the host."""
    return Codes(parts.shape, parts.precision, data.detach().cpu().numpy())


def decode(data: Int[torch.Tensor, " bytes"], parts: Parts, dtype: torch.dtype) -> Float[torch.Tensor, "..."]:
    """Decode a tensor of bytes on its device, without float64, which some devices lack."""
    return decoded(data, parts, _BITS).to(dtype)
