"""Two processes train generated layers as one does: DDP, FSDP1 and FSDP2 over gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import adtn
import numpy as np
import pytest

torch = pytest.importorskip("torch")
layers = pytest.importorskip("adtn_backends.torch.layers")

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="PyTorch without gloo"
)
STEPS, LR = 3, 0.05


def model():
    first = layers.ADTNLinear(adtn.Generator((16, 24), adtn.TTN(bond=2), seed=1))
    second = layers.ADTNLinear(adtn.Generator((8, 16), adtn.MPO(bond=2), seed=2))
    tied = layers.ADTNLinear(second.generated)
    return torch.nn.Sequential(first, torch.nn.SiLU(), second, torch.nn.Linear(8, 16), tied)


def data():
    rng = np.random.default_rng(0)
    return (torch.tensor(rng.standard_normal(shape, dtype=np.float32)) for shape in ((12, 24), (12, 8)))


def train(net, x, y):
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    return net


def half(rank: int, kind: str, folder: str) -> None:
    """Train with half of the rows."""
    net, (x, y) = model(), data()
    if kind == "ddp":
        net = torch.nn.parallel.DistributedDataParallel(net)
    elif kind == "fsdp1":  # parameters are views of a flat one, which belongs to no module
        from torch.distributed.fsdp import FullyShardedDataParallel

        net = FullyShardedDataParallel(net, use_orig_params=False, device_id=torch.device("cpu"))
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        fully_shard(net[0], mesh=mesh)
        fully_shard(net, mesh=mesh)
    train(net, x[rank::2], y[rank::2])
    inner = net.module if kind == "ddp" else net
    if kind == "fsdp1":
        with FullyShardedDataParallel.summon_full_params(net):
            numbers = [inner.module[i].generated.generator() for i in (0, 2)]
    else:
        numbers = [inner[i].generated.generator() for i in (0, 2)]
    if rank == 0:
        for n, generator in enumerate(numbers):
            adtn.save(f"{folder}/{n}.safetensors", generator)


def work(rank: int, kind: str, folder: str) -> None:
    """Run one of two processes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        half(rank, kind, folder)  # the model is deleted before its group, which otherwise may never end
    finally:
        group.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fsdp1"])
def test_two_processes_train_what_one_trains(kind: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (kind, str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    alone = train(model(), *data())
    for n, i in enumerate((0, 2)):
        got, want = adtn.load(tmp_path / f"{n}.safetensors"), alone[i].generated.generator()
        for name in want.params:
            np.testing.assert_allclose(got.params[name], want.params[name], rtol=1e-3, atol=1e-5)


SCRIPT = Path(__file__).parents[1] / "docs" / "guide" / "finetune.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="docs/ is not here")
def test_the_documented_command_trains_with_two_processes(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]  # torchrun
    command = [*launcher, str(SCRIPT), "--out", str(tmp_path), "--epochs", "3"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(line.split()[3].rstrip(",")) for line in done.stdout.splitlines() if line.startswith("epoch")]
    assert len(losses) == 3
    assert losses[-1] < 0.8 * losses[0]
    assert adtn.load(tmp_path / "0.safetensors").shape == (128, 64)
