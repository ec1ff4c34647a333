"""A folder of parked prefixes that several processes write to, read and keep within its limit at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from adtn.kv import KVCodec, PromptStore

from kv_models import llama, texts

PROCESSES, LIMIT = 3, 20_000
# without torch: a decoder whose states are looked up by token id
SCRIPT = """
import sys
from dataclasses import replace
from types import SimpleNamespace
import numpy as np
from adtn.kv import KVCodec, Pair, PromptStore

codec = KVCodec.load(sys.argv[1])
table = np.random.default_rng(0).normal(size=(50, 3, 2, 8)).astype(np.float32)

class Lookup:
    like = np.empty(0, np.float32)
    def states(self, ids): return Pair(k=table[ids], v=-table[ids])
    def others(self, ids): return {}
    def cache(self, states, others, device): return SimpleNamespace(states=states, crop=lambda n: None)

store = PromptStore(sys.argv[2], replace(codec, decoder=Lookup()), limit=int(sys.argv[3]))
own, found = int(sys.argv[4]), 0
print("ready", flush=True)
sys.stdin.readline()
for n in range(20):
    ids = np.random.default_rng([n, own]).integers(0, 50, 60)
    store.put(ids, ids, coder="rice", step=codec.relative_finest)
    assert store.nbytes <= store.limit, store.nbytes
    for other in range(3) if n % 5 == 0 else ():
        ids = np.random.default_rng([n, other]).integers(0, 50, 60)
        cached = store.get(ids, least=60)
        if cached is not None:
            found += 1
            exact = store.codec.decode(store.codec.encode(ids, ids, coder="rice", step=codec.relative_finest))
            assert all(np.array_equal(x, y) for x, y in zip(cached.cache.states, exact.states))
print(found, store.nbytes, flush=True)
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    codec = KVCodec.calibrate(llama(), texts(6, 40), continuation=8, kl=1e-2, layers_per_basis=2, samples=1)
    codec.save(tmp_path / "codec.safetensors")
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        SCRIPT,
        str(tmp_path / "codec.safetensors"),
        str(tmp_path / "store"),
        str(LIMIT),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen(
            [*command, str(own)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for own in range(PROCESSES)
    ]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:  # all start at once
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate(timeout=120)[0].split() for process in running]
    assert [process.returncode for process in running] == [0] * PROCESSES
    assert all(int(found) > 0 for found, _ in results)
    store = PromptStore(tmp_path / "store", codec, limit=LIMIT)
    assert 0 < store.nbytes <= LIMIT
    assert all(path.suffix == ".parked" for path in store.folder.iterdir() if not path.name.startswith("."))
