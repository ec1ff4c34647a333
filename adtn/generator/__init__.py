"""The generator: a topology on a layout with its parameters, and how it is run."""

from ._bond_matrix import topology_for as topology_for
from ._generator import Generator as Generator
from ._grouped import grouped_core as grouped_core
from ._grouped import is_core as is_core
from ._rows import generated_rows as generated_rows
