"""Devices, the cost of operations on them, and memory sizes."""

from ._bytes import Memory as Memory
from ._bytes import format_bytes as format_bytes
from ._bytes import parse_bytes as parse_bytes
from ._device import Devices as Devices
from ._device import devices as devices
from ._profile import DeviceProfile as DeviceProfile
from ._profile import Profile as Profile
from ._profile import itemsize_of as itemsize_of
from ._profile import shipped_profiles as shipped_profiles
from ._profile_store import cache_dir as cache_dir
from ._profile_store import chosen_profile as chosen_profile
from ._profile_store import profile_path as profile_path
