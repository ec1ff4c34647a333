"""The demo: train a network through generated layers, beside controls, on every backend."""

from ._data import load_images as load_images
from ._report import draw as draw
from ._report import tables as tables
from ._report import verdict as verdict
from ._run import Report as Report
from ._run import Result as Result
from ._run import run_demo as run_demo
