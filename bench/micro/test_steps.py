"""Steps of layers and of fits to their outputs, to compare two commits: ``pytest bench/micro --benchmark-compare``."""

from __future__ import annotations

from typing import Any

import adtn
import numpy as np
import pytest
from adtn.backends import check_device
from adtn.optim._loss import plan_loss
from adtn.optim._options import FitOptions

N = 1024
TOPOLOGIES: dict[str, adtn.Topology] = {
    "mpo": adtn.MPO(bond=8),
    "ttn": adtn.TTN(bond=4),
    "mera": adtn.MERA(bond=4),
    "tucker": adtn.Tucker(bond=4),
}


@pytest.mark.parametrize("batch", [1, 16, 64])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_layer_step_in_pytorch(benchmark: Any, name: str, batch: int) -> None:
    """Measure forward and all gradients."""
    torch = pytest.importorskip("torch")
    from adtn_backends.torch import ADTNLinear

    layer = ADTNLinear(adtn.Generator((N, N), TOPOLOGIES[name]), bias=False)
    x, cotangent = torch.randn(batch, N, requires_grad=True), torch.randn(batch, N)
    params = [x, *layer.parameters()]
    benchmark.extra_info["params"] = sum(p.numel() for p in layer.parameters())
    benchmark(lambda: torch.autograd.grad(layer(x), params, cotangent))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_convolution_step_in_pytorch(benchmark: Any, name: str) -> None:
    """Measure forward and all gradients, in the mode that the scheduler chooses."""
    torch = pytest.importorskip("torch")
    from adtn_backends.torch import ADTNConv2d

    layer = ADTNConv2d(adtn.Generator((256, 256, 3, 3), TOPOLOGIES[name]), bias=False, padding=1)
    x, cotangent = torch.randn(16, 256, 8, 8, requires_grad=True), torch.randn(16, 256, 8, 8)
    params = [x, *layer.parameters()]
    benchmark.extra_info["params"] = sum(p.numel() for p in layer.parameters())
    benchmark(lambda: torch.autograd.grad(layer(x), params, cotangent))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_step_of_a_fit_to_outputs(benchmark: Any, device: str, name: str) -> None:
    """Measure loss and all gradients."""
    rng = np.random.default_rng(0)
    target, x = rng.standard_normal((N, N)).astype(np.float32), rng.standard_normal((2 * N, N))
    generator = adtn.Generator((N, N), TOPOLOGIES[name], scale=target)
    objective = adtn.DataAwareReconstruction(target, x.T @ x / (2 * N))
    backend, where = check_device(device, "float32")
    loss = plan_loss(generator, objective, backend, where, FitOptions(device=device, dtype="float32"))
    params = {k: backend.asarray(p, where, "float32") for k, p in generator.params.items()}

    def step() -> float:
        return float(loss(params, ())[0])

    step()
    benchmark(step)
