"""Train a compressed model on several processes: ``torchrun --nproc-per-node 2 docs/guide/finetune.py``.

Every process compresses the same model in the same way (from the same seeds) and reads its share of the data. DDP
averages the gradients of the generators: a few hundred values per step instead of millions.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import adtn
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def dense() -> nn.Module:
    """Build a placeholder for your own model."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 4))


def dataset() -> TensorDataset:
    """Build a placeholder for your own data."""
    x = torch.randn(1024, 64, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, :32].sum(1) > 0).long() + 2 * (x[:, 32:].sum(1) > 0).long())


def train(options: argparse.Namespace, device: torch.device) -> None:
    """Compress, train and save, in each of the processes."""
    rank = torch.distributed.get_rank()
    model = dense()
    config = adtn.Config(targets=["0"], topology=adtn.MPO(bond=3), steps=50, recipe="reconstruct")
    report = adtn.compress(model, config)
    model.to(device)
    trained = nn.parallel.DistributedDataParallel(model)
    data = dataset()
    batches = DataLoader(data, batch_size=32, sampler=DistributedSampler(data, seed=0))
    optimizer = torch.optim.Adam(trained.parameters(), lr=3e-2)
    for epoch in range(options.epochs):
        batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        total = torch.zeros((), device=device)
        for x, y in batches:
            loss = nn.functional.cross_entropy(trained(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() / len(batches)
        torch.distributed.all_reduce(total, torch.distributed.ReduceOp.SUM)
        if rank == 0:
            mean = float(total) / torch.distributed.get_world_size()
            print(f"epoch {epoch + 1}: loss {mean:.4f}, {report.layers[0].params} parameters in the first layer")
    if rank == 0:
        options.out.mkdir(parents=True, exist_ok=True)
        adtn.save(options.out / "0.safetensors", model[0].generated.generator())


def main() -> None:
    """Train, and shut down properly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("finetuned"))
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if gpu else "gloo")
    try:
        # in a separate function: a DDP model that outlives its group can wait forever for a gloo thread
        train(options, torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu"))
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
