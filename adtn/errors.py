"""The errors and warnings of adtn: each says what was passed, what was expected and what to do.

:class:`ADTNError` is the base of every error that is raised on purpose; each class names one kind of fault.
"""

from __future__ import annotations


class ADTNError(Exception):
    """The base of every error that adtn raises on purpose."""


class LayoutError(ADTNError, ValueError):
    """An error for a weight that cannot be factored into the requested legs."""


class TopologyError(ADTNError, ValueError):
    """The error for cores, bonds or networks that do not fit together."""


class GeneratorError(ADTNError, ValueError):
    """An error for a seed, scale, base, dtype or parameter that a generator cannot have."""


class PrecisionError(ADTNError, ValueError):
    """An error for a precision that does not exist, or for an array that cannot be rounded to it."""


class OrderingError(ADTNError, ValueError):
    """An error for a tensor that cannot be ordered as requested, or that no network approximates in so few bytes."""


class BackendError(ADTNError, TypeError):
    """An error for an array that no registered backend owns, or an incomplete backend."""


class BenchError(ADTNError, ValueError):
    """An error for a benchmark that cannot run as requested."""


class DeviceError(ADTNError, ValueError):
    """An error for a device or dtype that does not exist or cannot be used."""


class MissingDependencyError(ADTNError, ImportError):
    """An error for an optional package that is not installed; the message names the pip command."""


class FileFormatError(ADTNError, ValueError):
    """An error for a file that is not a readable adtn file."""


class OutputError(ADTNError, OSError):
    """An error for a file or folder that cannot be written; the message names it."""


class OutputWarning(UserWarning):
    """A warning that an additional file could not be written; the work continues."""


class QualityWarning(UserWarning):
    """A warning that a compressed model is finished but much worse than the dense one."""


class FitError(ADTNError, ValueError):
    """An error for a fit that cannot run as requested."""


class ScheduleError(ADTNError, ValueError):
    """An error for a plan, mode, memory limit or device profile that is not possible."""


class CompressError(ADTNError, ValueError):
    """An error for a model that cannot be compressed as requested; the model is unchanged."""


class KVCacheError(ADTNError, ValueError):
    """An error for a decoder or a cache that cannot be coded, or a codec of another model."""


class ProfileError(FileFormatError, ScheduleError):
    """An error for a file that is not a readable device profile."""


class ModelFileError(FileFormatError, CompressError):
    """An error for an unreadable file of a compressed model, of an adapter or of a training."""


def missing(package: str, extra: str, purpose: str) -> MissingDependencyError:
    """Make the error for an optional package that is not installed."""
    return MissingDependencyError(
        f"{purpose} needs {package}, which is not installed. Get it with: pip install 'adtn[{extra}]'"
    )
