"""The calculus of programs: states, adjoints, projections, Jacobians, ranks, initial values."""

from ._active import active_parameters as active_parameters
from ._active import degrees_of_freedom as degrees_of_freedom
from ._adjoint import StageTape as StageTape
from ._adjoint import forward as forward
from ._adjoint import forward_stage as forward_stage
from ._adjoint import forward_tape as forward_tape
from ._adjoint import pullback as pullback
from ._adjoint import vjp as vjp
from ._initial import frozen_values as frozen_values
from ._initial import initial_values as initial_values
from ._jacobian import SampledJacobian as SampledJacobian
from ._jacobian import sampled_jacobian as sampled_jacobian
from ._jacobian import stacked as stacked
from ._projection import project as project
from ._projection import squared_norm as squared_norm
from ._tiled_adjoint import Consumer as Consumer
from ._tiled_adjoint import frontier as frontier
from ._tiled_adjoint import frontier_pullback as frontier_pullback
from ._tiled_adjoint import walk as walk
