"""A benchmark of the same tasks on every backend and device: time, peak memory, agreement."""

from ._cases import BATCHES as BATCHES
from ._cases import SHAPES as SHAPES
from ._cases import TOPOLOGIES as TOPOLOGIES
from ._cases import BenchCase as BenchCase
from ._cases import bench_set as bench_set
from ._config import BenchConfig as BenchConfig
from ._machine import machine as machine
from ._measure import Work as Work
from ._measure import median_seconds as median_seconds
from ._measure import paired_seconds as paired_seconds
from ._measure import peak_bytes as peak_bytes
from ._measure import seconds_in_turns as seconds_in_turns
from ._report import BenchReport as BenchReport
from ._run import run_bench as run_bench
