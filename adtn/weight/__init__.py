"""The conversion of a state to a weight: the formula, and one executable per mode."""

from ..calculus import Consumer as Consumer
from ._executable import Executable as Executable
from ._executable import FitExecutable as FitExecutable
from ._executable import Layer as Layer
from ._factored import Factored as Factored
from ._factored import with_input as with_input
from ._function import WeightFunction as WeightFunction
from ._materialised import InTiles as InTiles
from ._materialised import Materialised as Materialised
from ._mode import ANY_BATCH as ANY_BATCH
from ._mode import MODES as MODES
from ._mode import Mode as Mode
from ._projected import Projected as Projected
from ._projected import projecting as projecting
from ._projected import squared_distance as squared_distance
from ._projected import trusted_relative_square as trusted_relative_square
from ._projected import why_not_factored as why_not_factored
from ._streamed import Streamed as Streamed
from ._sweep import Sweep as Sweep
from ._tiled import TiledWeight as TiledWeight
from ._traced import EinsumSteps as EinsumSteps
from ._traced import TracedApply as TracedApply
from ._weighting import BASE as BASE
from ._weighting import BASE_SCALE as BASE_SCALE
from ._weighting import OneHot as OneHot
from ._weighting import Weighting as Weighting
