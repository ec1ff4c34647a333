"""The available devices, and the reasons why some are not usable."""

from __future__ import annotations

from .._checks import checked
from ..backends import DeviceInfo, backend_names, get_backend
from ..errors import DeviceError, MissingDependencyError


class Devices(tuple[DeviceInfo, ...]):
    """A tuple of devices that prints as a table."""

    __slots__ = ()

    @property
    def usable(self) -> tuple[DeviceInfo, ...]:
        """The devices on which arrays can be created."""
        return tuple(d for d in self if d.usable)

    def __repr__(self) -> str:
        rows = [
            ("device", "description", "memory", "dtypes"),
            *((d.name, d.description, _memory(d), _dtypes(d)) for d in self),
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows
        )


@checked(DeviceError)
def devices(*, null: bool = False) -> Devices:
    """List every device of every registered backend, usable or not.

    Parameters
    ----------
    null : bool
        Also list the null backend, which counts operations instead of computing.

    Returns
    -------
    Devices
        A tuple of :class:`adtn.backends.DeviceInfo`; prints as a table with memory, dtypes and, for devices
        that are not usable, the reason and the remedy.

    Examples
    --------
    >>> import adtn
    >>> adtn.devices().usable[0].name
    'numpy:cpu'
    """
    infos: list[DeviceInfo] = []
    names = sorted(backend_names(), key=lambda name: (name != "numpy", name))
    for name in names:
        if name == "null" and not null:
            continue
        try:
            infos += get_backend(name).devices()
        except MissingDependencyError as error:
            infos.append(DeviceInfo(name=f"{name}:cpu", description=name, usable=False, reason=str(error)))
    return Devices(infos)


def _memory(device: DeviceInfo) -> str:
    return "" if device.memory_bytes is None else f"{device.memory_bytes / 2**30:.1f} GiB"


def _dtypes(device: DeviceInfo) -> str:
    return ", ".join(device.dtypes) if device.usable else f"not usable: {device.reason}"
