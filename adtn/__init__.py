"""adtn: neural-network layers as the output of small nonlinear tensor networks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .bondspace import bonds as bonds
from .bondspace import probe as probe
from .bondspace import truncate as truncate
from .device import DeviceProfile as DeviceProfile
from .device import devices as devices
from .errors import ADTNError as ADTNError
from .generator import Generator as Generator
from .layout import Layout as Layout
from .layout import Permutation as Permutation
from .optim import DataAwareReconstruction as DataAwareReconstruction
from .optim import Objective as Objective
from .optim import Optimizer as Optimizer
from .optim import Reconstruction as Reconstruction
from .optim import Solution as Solution
from .optim import Status as Status
from .optim import Task as Task
from .optim import decompose as decompose
from .optim import fit as fit
from .optim import register_optimizer as register_optimizer
from .precision import Precision as Precision
from .schedule import ConvolutionPlan as ConvolutionPlan
from .schedule import Plan as Plan
from .schedule import calibrate as calibrate
from .schedule import plan as plan
from .schedule import plan_convolution as plan_convolution
from .topology import ATTN as ATTN
from .topology import CP as CP
from .topology import MERA as MERA
from .topology import MPO as MPO
from .topology import TT as TT
from .topology import TTN as TTN
from .topology import BrickWall as BrickWall
from .topology import Dense as Dense
from .topology import IdentityBase as IdentityBase
from .topology import KroneckerSum as KroneckerSum
from .topology import LowRank as LowRank
from .topology import RandomFeatures as RandomFeatures
from .topology import ScaledIdentity as ScaledIdentity
from .topology import ScaledRandom as ScaledRandom
from .topology import SeededBase as SeededBase
from .topology import TensorRing as TensorRing
from .topology import Topology as Topology
from .topology import Tucker as Tucker
from .topology import from_tensornetwork as from_tensornetwork
from .topology import register_activation as register_activation
from .topology import register_topology as register_topology
from .topology import to_tensornetwork as to_tensornetwork

if TYPE_CHECKING:
    from .compression import Budget as Budget
    from .compression import CompressReport as CompressReport
    from .compression import Config as Config
    from .compression import Stage as Stage
    from .compression import compress as compress
    from .compression import load as load
    from .compression import load_model as load_model
    from .compression import load_pretrained as load_pretrained
    from .compression import save as save
    from .compression import save_model as save_model
    from .kv import KVCodec as KVCodec
    from .ordering import SortedTensor as SortedTensor
    from .ordering import einsort as einsort

_LATE = {
    **dict.fromkeys(
        (
            "Budget",
            "CompressReport",
            "Config",
            "Stage",
            "compress",
            "load",
            "load_model",
            "load_pretrained",
            "save",
            "save_model",
        ),
        ".compression",
    ),
    "KVCodec": ".kv",
    **dict.fromkeys(("SortedTensor", "einsort"), ".ordering"),
}


def __getattr__(name: str) -> Any:
    # imported late, so that layers and fits need not wait for the compression of whole models
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name], __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_LATE]
