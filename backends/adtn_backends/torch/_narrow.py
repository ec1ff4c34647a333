"""Tensors that are not generated, in the precision in which a file holds them."""

from __future__ import annotations

import torch
from adtn.precision import Codes, Precision

from ..shared._rest import coded, is_coded
from ._overlap import overlaps


def coded_of(x: torch.Tensor, rest: Precision) -> Codes | None:
    """Return the codes of a tensor that is stored as such."""
    # entries that share memory may be in rows of different scales
    if not x.is_floating_point() or overlaps(x) or not is_coded(tuple(x.shape), rest):
        return None
    return coded(x.detach().cpu().float().numpy())


def narrowed(x: torch.Tensor, rest: str) -> torch.Tensor:
    """Convert real numbers to a narrower dtype, unless one would become infinite."""
    narrow = x.to(getattr(torch, rest)) if x.is_floating_point() and x.element_size() > 2 else x
    return (x if bool((narrow.isinf() & x.isfinite()).any()) else narrow).contiguous()
