"""Contraction programs: pairwise steps, tiles and rows, planned without arrays."""

from ._closed import STATE as STATE
from ._closed import closed as closed
from ._closed import product_order as product_order
from ._order import Node as Node
from ._order import arrange as arrange
from ._order import contraction_nodes as contraction_nodes
from ._pairwise import PLAIN as PLAIN
from ._pairwise import MatrixView as MatrixView
from ._pairwise import PairStep as PairStep
from ._program import Path as Path
from ._program import Program as Program
from ._program import Stage as Stage
from ._program import cached_program as cached_program
from ._program import compile_program as compile_program
from ._program import plan_stage as plan_stage
from ._program import plan_steps as plan_steps
from ._rows import chosen as chosen
from ._rows import probe_digits as probe_digits
from ._rows import rows_program as rows_program
from ._tiles import ONCE_PART as ONCE_PART
from ._tiles import Tiled as Tiled
from ._tiles import cut_legs as cut_legs
from ._tiles import default_path as default_path
from ._tiles import row_order as row_order
from ._tiles import tile_counts as tile_counts
from ._tiles import tile_program as tile_program
