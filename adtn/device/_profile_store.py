"""Storage of measured profiles, and the choice of a profile for a device."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

from ..backends import Backend, check_device
from ..errors import ProfileError, ScheduleError
from ._profile import FORMAT, DeviceProfile, Profile, shipped_profiles


def chosen_profile(device: str, dtype: str, profile: Profile | None) -> DeviceProfile:
    """Resolve a profile given as an object, a name or a file; ``None`` selects the profile of the device.

    Raises
    ------
    ScheduleError
        If the profile is neither shipped nor a file.
    """
    if isinstance(profile, DeviceProfile):
        return profile
    if profile is None:
        backend, where = check_device(device, dtype)
        return find_profile(backend, where, dtype)
    return named_profile(os.fspath(profile), dtype)


def find_profile(backend: Backend, where: str, dtype: str) -> DeviceProfile:
    """Find the calibrated profile of a device, ignoring corrupted ones, or else the nearest shipped profile."""
    for path in (profile_path(backend, where, dtype), profile_path(backend, where, dtype, _OLDER)):
        profile = _calibrated(path)
        if profile is not None:
            return profile
    key = (f"{backend.name}:{where}", dtype, 0)
    if key not in _LOADED:
        _LOADED[key] = nearest_shipped(backend, where, dtype)
    return _LOADED[key]  # pyright: ignore[reportReturnType]


_OLDER = 3  # the last format without a digest
_LOADED: dict[tuple[str, str, int], DeviceProfile | None] = {}


def _calibrated(path: Path) -> DeviceProfile | None:
    try:
        stat = path.stat()
        key = (str(path), str(stat.st_size), stat.st_mtime_ns)
        if key not in _LOADED:
            _LOADED[key] = None
            _LOADED[key] = DeviceProfile.load(path)
        return _LOADED[key]
    except (OSError, ProfileError):
        return None


def named_profile(name: str, dtype: str) -> DeviceProfile:
    """Load a shipped profile by its name, or a profile from a file.

    Raises
    ------
    ScheduleError
        If there is no such profile.
    """
    if name in shipped_profiles():
        return DeviceProfile.shipped(name, dtype)
    if not os.path.exists(name):
        names = ", ".join(shipped_profiles())
        raise ScheduleError(
            f"Got profile={name!r}, which is neither a file nor a shipped profile; expected a file, or one of {names}."
        )
    return DeviceProfile.load(name)


def cache_dir() -> Path:
    """Return the folder in which profiles and paths are cached: ``ADTN_CACHE``, or the user's cache directory."""
    import platformdirs

    return Path(os.environ.get("ADTN_CACHE") or platformdirs.user_cache_dir("adtn"))


def profile_path(backend: Backend, where: str, dtype: str, version: int | None = None) -> Path:
    """Return the path of a calibrated profile, which includes a hash of the format and of the environment."""
    mark = hashlib.sha256(repr((version or FORMAT, sorted(versions(backend, where).items()))).encode()).hexdigest()[:12]
    return cache_dir() / "profiles" / f"{backend.name}-{where.replace(':', '')}-{dtype}-{mark}.json"


def nearest_shipped(backend: Backend, where: str, dtype: str) -> DeviceProfile:
    """Choose the shipped profile nearest to a device: a measured one if there is one, else a datasheet."""
    description = next((d.description.lower() for d in backend.devices() if d.name.endswith(where)), "")
    names = [
        n for n in ("t4", "a100", "h200", "h100") if n in description.replace("-", " ").split() or n in description
    ]
    if where.startswith("mps"):
        names = ["apple-m"]
    elif not names:
        names = ["generic-cpu" if where == "cpu" else "t4"]
    measured = f"{names[0]}-{backend.name}"
    if measured in shipped_profiles() and dtype == "float32":
        return DeviceProfile.shipped(measured, dtype)
    return DeviceProfile.shipped(names[0], dtype if dtype != "bfloat16" or names[0] != "t4" else "float16")


def versions(backend: Backend, where: str) -> dict[str, str]:
    """Collect everything that a measurement depends on."""
    info = next((d for d in backend.devices() if d.name.partition(":")[2] == where), None)
    return {
        "device": info.description if info else where,
        "threads": os.environ.get("OMP_NUM_THREADS", "") + "/" + str(os.cpu_count()),
        "machine": f"{platform.machine()} {_cpu_name()}",
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def last_level_cache() -> int:
    """Return the size of the largest cache of a core in bytes; 32 MiB if the system does not report it."""
    sizes: list[int] = []
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = entry.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1))
    return max(sizes, default=32 << 20)
