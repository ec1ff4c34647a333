"""PyTorch modules whose weights are generated: plain parameters, stable keys, no tensor subclasses."""

from ._attention import ADTNMultiheadAttention as ADTNMultiheadAttention
from ._conv import ADTNConv1d as ADTNConv1d
from ._conv import ADTNConv2d as ADTNConv2d
from ._conv import ADTNConv3d as ADTNConv3d
from ._dense import to_dense as to_dense
from ._embedding import ADTNEmbedding as ADTNEmbedding
from ._linear import ADTNLinear as ADTNLinear
from ._weight import GeneratedWeight as GeneratedWeight
from ._weight import Mode as Mode
