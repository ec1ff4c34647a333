"""Orders of the entries of a tensor before it is approximated by a network, and their price in bits."""

from ._absorption import Absorbed as Absorbed
from ._absorption import Absorption as Absorption
from ._absorption import Kept as Kept
from ._assignment import Assignment as Assignment
from ._bits import StoredBits as StoredBits
from ._bits import bits_of_multinomial as bits_of_multinomial
from ._bits import bits_of_permutation as bits_of_permutation
from ._buckets import Buckets as Buckets
from ._control import Control as Control
from ._einsort import einsort as einsort
from ._full_sorts import Entries as Entries
from ._full_sorts import Rows as Rows
from ._leaf import Leaf as Leaf
from ._none import Unordered as Unordered
from ._norm import Norm as Norm
from ._ordering import Order as Order
from ._ordering import Ordering as Ordering
from ._registry import ordering_names as ordering_names
from ._registry import register_ordering as register_ordering
from ._search import Search as Search
from ._sorted_tensor import SortedTensor as SortedTensor
from ._spectral import Spectral as Spectral
