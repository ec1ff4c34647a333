"""Layouts of weight axes as tensor legs: factorisation, padding, order, permutations."""

from ._layout import MAX_AXES as MAX_AXES
from ._layout import Layout as Layout
from ._layout import pad as pad
from ._lehmer import decode_permutation as decode_permutation
from ._lehmer import encode_permutation as encode_permutation
from ._permutation import Permutation as Permutation
from ._permutation import index_on as index_on
