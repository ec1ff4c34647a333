"""Decisions: contraction orders, prices, and the plan of a task."""

from ._plan import TASKS as TASKS
from ._plan import Plan as Plan
from ._planner import decide as decide
from ._planner import plan as plan
from ._request import FitLoss as FitLoss
from ._sketch import Sketch as Sketch
from ._validate import calibrate as calibrate
