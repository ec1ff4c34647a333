"""Optimizers that come with the library; importing this package registers them."""

from .._optimizer import register_optimizer
from ._first_order import SGD, Adam, AdamW
from ._gauss_newton import LevenbergMarquardt
from ._lbfgs import LBFGS

register_optimizer("adam", Adam)
register_optimizer("adamw", AdamW)
register_optimizer("sgd", SGD)
register_optimizer("lbfgs", LBFGS)
register_optimizer("lm", LevenbergMarquardt)
