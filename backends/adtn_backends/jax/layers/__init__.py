"""Flax NNX modules whose weights are generated; parameters are plain ``nnx.Param``."""

from ...shared._adapters import adapter_generators as adapter_generators
from ...shared._adapters import adapter_names as adapter_names
from ...shared._adapters import add_adapter as add_adapter
from ...shared._adapters import load_adapter as load_adapter
from ...shared._adapters import merge_adapters as merge_adapters
from ...shared._adapters import remove_adapters as remove_adapters
from ...shared._adapters import save_adapter as save_adapter
from ...shared._adapters import set_adapter as set_adapter
from ...shared._adapters import unmerge_adapters as unmerge_adapters
from ._absorb import absorb_hidden as absorb_hidden
from ._adapted import Adapted as Adapted
from ._attention import ADTNMultiheadAttention as ADTNMultiheadAttention
from ._conv import ADTNConv1d as ADTNConv1d
from ._conv import ADTNConv2d as ADTNConv2d
from ._conv import ADTNConv3d as ADTNConv3d
from ._dense import to_dense as to_dense
from ._embedding import ADTNEmbedding as ADTNEmbedding
from ._linear import ADTNLinear as ADTNLinear
from ._linear import ADTNLinearGeneral as ADTNLinearGeneral
from ._orders import absorb_orders as absorb_orders
from ._slice import GeneratedSlice as GeneratedSlice
from ._weight import GeneratedWeight as GeneratedWeight
from ._weight import Mode as Mode
