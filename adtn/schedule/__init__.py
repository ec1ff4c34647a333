"""When and where: devices, their profiles, contraction orders, execution modes and plans."""

from ._calibrate import calibrate as calibrate
from ._device import Devices as Devices
from ._device import devices as devices
from ._execution import Consumer as Consumer
from ._execution import TiledWeight as TiledWeight
from ._execution import generate as generate
from ._execution import squared_distance as squared_distance
from ._plan import MODES as MODES
from ._plan import TASKS as TASKS
from ._plan import Plan as Plan
from ._planner import Sketch as Sketch
from ._planner import decide as decide
from ._planner import parse_bytes as parse_bytes
from ._planner import plan as plan
from ._profile import DeviceProfile as DeviceProfile
from ._profile import shipped_profiles as shipped_profiles
