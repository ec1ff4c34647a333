"""Use: files (layer configurations and whole models come on top of them)."""

from ._storage import load as load
from ._storage import read_header as read_header
from ._storage import save as save
from ._weights import pick_weight as pick_weight
from ._weights import read_weights as read_weights
