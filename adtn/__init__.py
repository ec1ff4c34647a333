"""adtn: neural-network layers as the output of small nonlinear tensor networks."""

from ._errors import ADTNError as ADTNError
from ._version import __version__ as __version__
from .network import ATTN as ATTN
from .network import CP as CP
from .network import MERA as MERA
from .network import MPO as MPO
from .network import TT as TT
from .network import TTN as TTN
from .network import BrickWall as BrickWall
from .network import Generator as Generator
from .network import Layout as Layout
from .network import SeededBase as SeededBase
from .network import TensorRing as TensorRing
from .network import Topology as Topology
from .network import Tucker as Tucker
from .network import register_activation as register_activation
from .network import register_topology as register_topology
from .optim import DataAwareReconstruction as DataAwareReconstruction
from .optim import Objective as Objective
from .optim import Reconstruction as Reconstruction
from .optim import Solution as Solution
from .optim import Status as Status
from .optim import Task as Task
from .optim import decompose as decompose
from .optim import fit as fit
from .schedule import devices as devices
