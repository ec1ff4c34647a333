"""Pictures of networks: where cores, bonds and legs are drawn, and the figure."""

from ._figure import figure as figure
from ._figure import new_figure as new_figure
from ._figure import write_figure as write_figure
from ._place import place as place
from ._records import Label as Label
from ._records import Line as Line
from ._records import Node as Node
from ._records import Picture as Picture
from ._records import Piece as Piece
from ._shades import Shade as Shade
from ._shades import measures_shades as measures_shades
from ._shades import shades_of as shades_of
