"""Use: files (layer configurations and whole models come on top of them)."""

from ._storage import load as load
from ._storage import read_header as read_header
from ._storage import save as save
