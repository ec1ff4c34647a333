"""Precisions of stored arrays: formats, codes, and how an array is rounded to them."""

from ._codes import Codes as Codes
from ._decode import Bits as Bits
from ._decode import decoded as decoded
from ._decode import in_groups as in_groups
from ._decode import order_in_groups as order_in_groups
from ._precision import Format as Format
from ._precision import Parts as Parts
from ._precision import Precision as Precision
from ._precision import parts_of as parts_of
from ._precision import stored_bytes as stored_bytes
from ._round import order_of as order_of
from ._round import round_symmetric as round_symmetric
from ._round import round_to as round_to
from ._symbols import Reader as Reader
from ._symbols import Writer as Writer
from ._trained import Straight as Straight
from ._trained import gains_shape as gains_shape
from ._trained import rounded_again as rounded_again
from ._trained import rounded_through as rounded_through
