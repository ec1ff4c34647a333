"""All errors and warnings of adtn: each says what was got, what was expected and what to do.

:class:`ADTNError` is the base of every error that is raised on purpose; each class names one kind of fault.
"""

from __future__ import annotations


class ADTNError(Exception):
    """The base of every error that adtn raises on purpose."""


class LayoutError(ADTNError, ValueError):
    """A weight cannot be cut into the legs that were asked for."""


class TopologyError(ADTNError, ValueError):
    """The error for cores, bonds or networks that do not fit together."""


class GeneratorError(ADTNError, ValueError):
    """A seed, scale, base, dtype or parameter that a generator cannot have."""


class BackendError(ADTNError, TypeError):
    """An array that no registered backend owns, or a backend that lacks what it must offer."""


class BenchError(ADTNError, ValueError):
    """A side-by-side benchmark was asked for in a way that cannot work."""


class DeviceError(ADTNError, ValueError):
    """A device or dtype does not exist or cannot be used here."""


class MissingDependencyError(ADTNError, ImportError):
    """An optional package is needed and not installed; the message names the pip command."""


class FileFormatError(ADTNError, ValueError):
    """A file is not a readable adtn file."""


class OutputError(ADTNError, OSError):
    """A file or folder cannot be written where it was asked for; the message names it."""


class OutputWarning(UserWarning):
    """A warning: something beside the result could not be written; the work goes on."""


class FitError(ADTNError, ValueError):
    """A fit was asked for in a way that cannot work."""


class ScheduleError(ADTNError, ValueError):
    """A plan, mode, memory limit or device profile that cannot work."""


class CompressError(ADTNError, ValueError):
    """A model cannot be compressed in the way that was asked for; it is left as it was."""


class ProfileError(FileFormatError, ScheduleError):
    """A file is not a readable device profile."""


class ModelFileError(FileFormatError, CompressError):
    """A file of a compressed model, of an adapter or of a training is not readable."""


def missing(package: str, extra: str, purpose: str) -> MissingDependencyError:
    """The error for an optional package that is not installed."""
    return MissingDependencyError(
        f"{purpose} needs {package}, which is not installed. Get it with: pip install 'adtn[{extra}]'"
    )
