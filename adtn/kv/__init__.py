"""Caches of keys and values of a decoder, coded into few bytes."""

from ._ans import Coded as Coded
from ._codec import KVCodec as KVCodec
from ._decoder import Decoder as Decoder
from ._decoder import decoder_of as decoder_of
from ._live import LayerCode as LayerCode
from ._live import LiveOptions as LiveOptions
from ._order import Order as Order
from ._pair import Pair as Pair
from ._parked import Parked as Parked
from ._report import KVReport as KVReport
from ._report import kv_report as kv_report
from ._store import Found as Found
from ._store import PromptStore as PromptStore
