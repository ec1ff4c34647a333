"""When and where: devices, their profiles, contraction orders, execution modes and plans."""

from ._bytes import Memory as Memory
from ._bytes import parse_bytes as parse_bytes
from ._calibrate import calibrate as calibrate
from ._device import Devices as Devices
from ._device import devices as devices
from ._plan import TASKS as TASKS
from ._plan import Plan as Plan
from ._planner import decide as decide
from ._planner import plan as plan
from ._profile import DeviceProfile as DeviceProfile
from ._profile import shipped_profiles as shipped_profiles
from ._profile_store import cache_dir as cache_dir
from ._sketch import Sketch as Sketch
