"""Learning rates of cores in proportion to the size of their entries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

Key = TypeVar("Key")


def relative_rates(sizes: Mapping[Key, float]) -> dict[Key, float]:
    r"""Return the factor of the learning rate of every core: its size over the geometric mean of all sizes.

    A step of Adam moves every entry by about the learning rate, so that cores with small entries change by a larger
    part than others. With :math:`\rho_p = \mathrm{RMS}(p) / \mathrm{mean}_q\,\mathrm{RMS}(q)`, all change by the same
    part, and the learning rate still means what it does without. The sizes are those before the first step; a core of
    zeros, which a relative step would never move, has the factor 1.

    Parameters
    ----------
    sizes : mapping of key to float
        The root mean square of the entries of every core.

    References
    ----------
    N. Shazeer, M. Stern (2018), arXiv:1804.04235: steps relative to the scale of the parameters. The geometric mean,
    and factors that stay the same, are choices of this library.

    Examples
    --------
    >>> relative_rates({"left": 0.5, "right": 2.0, "zero": 0.0})
    {'left': 0.5, 'right': 2.0, 'zero': 1.0}
    """
    logs = [math.log(size) for size in sizes.values() if size > 0.0]
    mean = math.exp(math.fsum(logs) / len(logs)) if logs else 1.0
    return {key: size / mean if size > 0.0 else 1.0 for key, size in sizes.items()}
