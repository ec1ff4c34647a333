"""Decisions: contraction orders, prices, and the plan of a task."""

from ._convolution import ConvolutionPlan as ConvolutionPlan
from ._convolution import Images as Images
from ._convolution import decide_convolution as decide_convolution
from ._convolution import plan_convolution as plan_convolution
from ._plan import TASKS as TASKS
from ._plan import Plan as Plan
from ._planner import decide as decide
from ._planner import plan as plan
from ._request import FitLoss as FitLoss
from ._sketch import Planned as Planned
from ._sketch import Sketch as Sketch
from ._validate import calibrate as calibrate
