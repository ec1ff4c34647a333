"""Fits: objectives, optimizers, schedules, decompositions, and the loop."""

from ._decompose import decompose as decompose
from ._decompose import has_decomposition as has_decomposition
from ._fingerprint import fingerprint as fingerprint
from ._fit import fit as fit
from ._fit import run_fit as run_fit
from ._objective import DataAwareReconstruction as DataAwareReconstruction
from ._objective import Objective as Objective
from ._objective import Reconstruction as Reconstruction
from ._objective import Task as Task
from ._optimizer import Evaluation as Evaluation
from ._optimizer import Iterate as Iterate
from ._optimizer import Optimizer as Optimizer
from ._optimizer import OptimizerName as OptimizerName
from ._optimizer import Problem as Problem
from ._optimizer import optimizer_names as optimizer_names
from ._optimizer import register_optimizer as register_optimizer
from ._options import FitOptions as FitOptions
from ._schedules import make_schedule as make_schedule
from ._solution import Solution as Solution
from ._solution import Status as Status
from .solvers import LBFGS as LBFGS
from .solvers import SGD as SGD
from .solvers import Adam as Adam
from .solvers import AdamW as AdamW
from .solvers import LevenbergMarquardt as LevenbergMarquardt
