"""Calibration: the cost of operations on a device, and of whole programs relative to their sum."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

from .._atomic import write_atomic
from .._checks import checked
from .._files import check_writable
from ..backends import check_device
from ..device import DeviceProfile, profile_path
from ..errors import DeviceError, OutputWarning, ScheduleError
from ..topology import MERA, MPO, TTN, BrickWall
from ._planner import plan
from ._sketch import Sketch

_PROGRAM_SIZES = (512, 2048)


@checked(DeviceError, save=ScheduleError)
def calibrate(device: str = "numpy:cpu", dtype: str = "float32", *, save: bool = True) -> DeviceProfile:
    """Measure the cost of operations on a device, and store the result for all later plans.

    Parameters
    ----------
    device : str
        The device, such as ``"torch:cuda:0"``.
    dtype : str
        The dtype of the arrays.
    save : bool
        Whether to store the profile in the user's cache directory, where plans read it. The file is keyed by device,
        dtype, hardware, framework version and number of threads.

    Returns
    -------
    DeviceProfile
        The profile; its ``fit_error`` is the error of predictions of measurements that are not in the profile.

    Raises
    ------
    DeviceError, MissingDependencyError
        If the device or dtype is not available.
    OutputError
        If the cache directory cannot be written to.

    Notes
    -----
    Run it on an otherwise idle machine. Products that take longer than about a millisecond are not measured, but
    extrapolated in proportion to their size.

    Examples
    --------
    >>> import adtn
    >>> profile = adtn.calibrate("numpy:cpu", save=False)  # doctest: +SKIP
    """
    from ..device._calibrate import Calibration  # imported late, so that importing adtn is fast

    backend, where = check_device(device, dtype)
    if backend.name == "null":
        raise ScheduleError("The null backend computes nothing that could be measured; pass a shipped profile instead.")
    path = profile_path(backend, where, dtype)
    if save:
        check_writable(path.parent, "ADTN_CACHE", "folder")
    with backend.scope(dtype):
        calibration = Calibration(backend, where, dtype)
        profile = calibration.profile()
        factor, error = program_factor(calibration, profile)
    profile = replace(profile, program_factor=factor, fit_error={**profile.fit_error, "program": error})
    if save:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, profile.to_json().encode())
        except OSError as error:
            warnings.warn(f"The profile is not cached for later plans: {path}: {error}", OutputWarning, stacklevel=2)
    return profile


def program_factor(calibration: Any, profile: DeviceProfile) -> tuple[float, float]:
    """Return the median ratio of measured to predicted time of small programs, and the median deviation from it."""
    logs: list[float] = []
    topologies = (TTN(bond=3), BrickWall(layers=2), MERA(bond=2), MPO(bond=6))
    # compiling a program takes longer than running it
    for topology in topologies[: 2 if calibration.compiles else None]:
        for n in _PROGRAM_SIZES[: 1 if calibration.compiles else None]:
            layout = topology.default_layout((n, n))
            for task in ("fit", "train"):
                sketch = Sketch((n, n), topology, layout, calibration.dtype)
                made = plan(sketch, task, device=profile.name, batch=64, profile=profile)
                shapes = {core.param: core.shape for s in sketch.segments for core in s.cores}
                arrays = {name: calibration.array(*shape) * (1.0 / shape[0]) for name, shape in shapes.items()}
                goal = calibration.array(64, n)
                if made.task == "fit":
                    goal = made.fit.arrange(calibration.array(n, n))
                measured = calibration.measure(made.step(calibration.backend), arrays, goal)
                logs.append(math.log(measured / (made.predicted_seconds - profile.call_s)))
    from statistics import median  # 2 ms

    middle = median(logs)
    return math.exp(middle), median(abs(x - middle) for x in logs)
