"""Caches of layers by batch size are bounded, and are freed with the layer."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import weakref
from typing import Any

import adtn
import numpy as np
import pytest

from adtn_backends.shared._cache import MOST, remember

torch = pytest.importorskip("torch")
TTN = adtn.TTN(bond=2)
MODES = (None, "materialise", "stream", "factored")
BATCHES = [1 << n for n in range(13)]


def test_the_oldest_entry_makes_room() -> None:
    cache: dict[int, int] = {}
    for n in range(200):
        assert remember(cache, n, -n) == -n
        assert len(cache) <= MOST
    assert list(cache) == list(range(200 - MOST, 200))
    remember(cache, 199, 0)  # as if another thread had inserted it as well
    assert len(cache) <= MOST


@pytest.fixture(scope="module")
def torch_layer() -> Any:
    """Make a layer, and apply it to 200 batch sizes, in every mode and dtype, with and without gradients."""
    from adtn_backends.torch.layers import ADTNLinear

    layer = ADTNLinear(adtn.Generator((8, 8), TTN))
    for n, batch in enumerate(range(1, 1001, 5)):
        layer.mode = MODES[n % 4]  # type: ignore[assignment]
        dtype = (torch.float32, torch.float64, torch.bfloat16)[n // 4 % 3]
        with torch.set_grad_enabled(bool(n // 12 % 2)):
            layer.to(dtype)(torch.ones(batch, 8, dtype=dtype))
        assert len(layer.generated._layers) <= MOST
    return layer


def test_layers_of_torch_remember_a_bounded_number_of_batches(torch_layer: Any) -> None:
    weight = torch_layer.generated
    asked = 0
    for batch, mode, dtype, train in itertools.product(BATCHES, MODES, (torch.float32, torch.float64), (False, True)):
        weight.layer(torch.empty(batch, 8, dtype=dtype), mode, train=train)
        asked += 1
        assert len(weight._layers) <= MOST
    assert asked > 2 * MOST
    assert len(weight._layers) == MOST
    for mode in MODES:
        weight.traced(mode)
    assert len(weight._traced) <= len(MODES)


def test_copies_and_pickles_of_torch_remember_nothing(torch_layer: Any) -> None:
    for other in (copy.deepcopy(torch_layer), pickle.loads(pickle.dumps(torch_layer))):
        assert not other.generated._layers
        assert not other.generated._traced


@pytest.mark.parametrize("who", ["torch", "jax", "generator"])
def test_batches_up_to_a_power_of_two_share_a_plan(who: str) -> None:
    generator = adtn.Generator((8, 8), TTN)
    if who == "torch":
        from adtn_backends.torch.layers import ADTNLinear

        layer: Any = ADTNLinear(generator)
        made, ask = layer.generated._layers, lambda batch: layer(torch.ones(batch, 8))
    elif who == "jax":
        pytest.importorskip("flax")
        import jax.numpy as jnp

        from adtn_backends.jax.layers import ADTNLinear

        layer = ADTNLinear(generator)
        made, ask = layer.generated.structure._layers, lambda batch: layer(jnp.ones((batch, 8)))
    else:
        made, ask = generator._products, lambda batch: generator.apply(np.ones((batch, 8), np.float32))
    planned: list[int] = []
    for batches in ((1,), (2,), (3, 4), (5, 6, 8), (9, 16)):
        planned.append(batches[-1])
        for batch in batches:
            assert ask(batch).shape == (batch, 8)
            keys = list(made if isinstance(made, dict) else made._values)
            assert [part for key in keys for part in key if type(part) is int] == planned, batch


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_caches_are_freed_with_the_layer(framework: str) -> None:
    if framework == "jax":
        pytest.importorskip("flax")
        import jax.numpy as numbers

        from adtn_backends.jax.layers import ADTNLinear
    else:
        from adtn_backends.torch.layers import ADTNLinear

        numbers = torch
    layer: Any = ADTNLinear(adtn.Generator((8, 8), TTN))
    layer(numbers.ones((3, 8)))
    weight = layer.generated
    cache = weight._layers if framework == "torch" else weight.structure._layers
    _, function = next(iter(cache.values()))
    alive = weakref.ref(function)
    del layer, weight, cache, function
    gc.collect()
    assert alive() is None


def test_layers_of_flax_remember_a_bounded_number_of_batches() -> None:
    pytest.importorskip("flax")
    import jax.numpy as jnp

    from adtn_backends.jax.layers import ADTNLinear

    layer = ADTNLinear(adtn.Generator((8, 8), TTN))
    made = layer.generated.structure._layers
    for batch in (1, 3, 200):
        layer(jnp.ones((batch, 8)))
    assert len(made) == 3
    asked = 0
    for batch, mode, dtype in itertools.product(BATCHES, MODES, ("float32", "float16", "bfloat16")):
        layer.generated.layer(jnp.empty((batch, 8), dtype), mode)  # type: ignore[arg-type]
        asked += 1
        assert len(made) <= MOST
    assert asked > 2 * MOST
    assert len(made) == MOST
    other = pickle.loads(pickle.dumps(layer.generated.structure))
    assert not other._layers
