"""The main job from end to end: train a network through generated layers, beside controls, on every backend."""

from ._run import run_demo as run_demo
