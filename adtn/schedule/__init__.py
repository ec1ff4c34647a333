"""When and where: devices, their profiles, contraction orders, execution modes and plans."""

from ._bytes import Memory as Memory
from ._bytes import parse_bytes as parse_bytes
from ._calibrate import calibrate as calibrate
from ._device import Devices as Devices
from ._device import devices as devices
from ._distance import squared_distance as squared_distance
from ._distance import trusted_relative_square as trusted_relative_square
from ._execution import KEPT_BYTES as KEPT_BYTES
from ._execution import Consumer as Consumer
from ._execution import TiledWeight as TiledWeight
from ._execution import generate as generate
from ._execution import with_base as with_base
from ._layers import Steps as Steps
from ._layers import TracedApply as TracedApply
from ._plan import MODES as MODES
from ._plan import TASKS as TASKS
from ._plan import Mode as Mode
from ._plan import Plan as Plan
from ._planner import decide as decide
from ._planner import plan as plan
from ._profile import DeviceProfile as DeviceProfile
from ._profile import shipped_profiles as shipped_profiles
from ._profile_store import cache_dir as cache_dir
from ._sketch import Sketch as Sketch
