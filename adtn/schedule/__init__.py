"""When and where: devices (contraction orders and execution modes come on top of them)."""

from ._device import Devices as Devices
from ._device import devices as devices
