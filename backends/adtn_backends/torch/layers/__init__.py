"""PyTorch modules whose weights are generated: plain parameters, stable keys, no tensor subclasses."""

from ._adapted import Adapted as Adapted
from ._adapted import adapter_generators as adapter_generators
from ._adapted import adapter_names as adapter_names
from ._adapted import add_adapter as add_adapter
from ._adapted import load_adapter as load_adapter
from ._adapted import merge_adapters as merge_adapters
from ._adapted import remove_adapters as remove_adapters
from ._adapted import save_adapter as save_adapter
from ._adapted import set_adapter as set_adapter
from ._adapted import unmerge_adapters as unmerge_adapters
from ._attention import ADTNMultiheadAttention as ADTNMultiheadAttention
from ._conv import ADTNConv1d as ADTNConv1d
from ._conv import ADTNConv2d as ADTNConv2d
from ._conv import ADTNConv3d as ADTNConv3d
from ._dense import to_dense as to_dense
from ._embedding import ADTNEmbedding as ADTNEmbedding
from ._linear import ADTNLinear as ADTNLinear
from ._parametrized import Parametrized as Parametrized
from ._parametrized import parametrized as parametrized
from ._weight import GeneratedWeight as GeneratedWeight
from ._weight import Mode as Mode
from ._weight import cached_weights as cached_weights
