"""Use: files, and whole models."""

from ._budget import Budget as Budget
from ._compress import compress as compress
from ._config import RECIPES as RECIPES
from ._config import Config as Config
from ._folder import load_model as load_model
from ._folder import load_pretrained as load_pretrained
from ._folder import run_folder as run_folder
from ._layer_files import load_layers as load_layers
from ._layer_files import save_layers as save_layers
from ._local import starting_at_zero as starting_at_zero
from ._model import Layer as Layer
from ._model import Model as Model
from ._model import Tuning as Tuning
from ._report import CompressReport as CompressReport
from ._report import LayerRow as LayerRow
from ._report import ModelCost as ModelCost
from ._sizes import bond_field as bond_field
from ._sizes import largest_within as largest_within
from ._sizes import stored_params as stored_params
from ._sizes import with_bond as with_bond
from ._storage import load as load
from ._storage import read_header as read_header
from ._storage import save as save
from ._storage import to_bytes as to_bytes
from ._weights import pick_weight as pick_weight
from ._weights import read_weights as read_weights
