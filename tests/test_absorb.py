"""Permutations that models take over: outputs change by rounding only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from adtn import Permutation, einsort
from adtn.errors import LayoutError

torch = pytest.importorskip("torch")
from adtn_backends.torch import absorb_heads, absorb_hidden, absorb_residual, absorb_rotary, absorb_values  # noqa: E402

TOLERANCE = 1e-12  # float64
OF_NORMS = 1e-6  # whose sums over the residual stream are in float32, whatever the dtype


@pytest.fixture(scope="module")
def llama() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for x in model.parameters():  # normalisations and biases that are not all alike
            x.add_(0.2 * torch.randn_like(x))
    return model


IDS = [[3, 14, 15, 9, 2, 6, 5, 35, 8, 9, 7, 9], [1] * 12]


def scores(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).logits.numpy()


def of_hidden(model: Any) -> None:
    for k, layer in enumerate(model.model.layers):
        absorb_hidden([layer.mlp.gate_proj, layer.mlp.up_proj], layer.mlp.down_proj, Permutation.random(40, k))


def of_values(model: Any) -> None:
    for k, layer in enumerate(model.model.layers):
        absorb_values(layer.self_attn, [Permutation.random(8, 2 * k), Permutation.random(8, 2 * k + 1)])


def of_heads(model: Any) -> None:
    for layer in model.model.layers:
        absorb_heads(layer.self_attn, Permutation([1, 0]))


def of_rotary(model: Any) -> None:
    absorb_rotary(model, Permutation([2, 0, 3, 1]))


def of_residual(model: Any) -> None:
    absorb_residual(model, Permutation.random(24, 7))


KINDS: dict[str, tuple[Callable[[Any], None], list[str]]] = {
    "hidden": (of_hidden, ["gate_proj.weight", "down_proj.weight", "up_proj.bias"]),
    "values": (of_values, ["v_proj.weight", "v_proj.bias", "o_proj.weight"]),
    "heads": (of_heads, ["q_proj.weight", "k_proj.bias", "v_proj.weight", "o_proj.weight"]),
    "rotary": (of_rotary, ["q_proj.weight", "k_proj.weight", "k_proj.bias"]),
    "residual": (of_residual, ["embed_tokens.weight", "o_proj.bias", "norm.weight", "down_proj.weight"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_change_by_rounding_only(llama: Any, kind: str) -> None:
    absorb, moved = KINDS[kind]
    model = copy.deepcopy(llama)
    absorb(model)
    want = scores(llama)
    tolerance = OF_NORMS if kind == "residual" else TOLERANCE
    assert np.abs(scores(model) - want).max() < tolerance * np.abs(want).max()
    before = dict(llama.named_parameters())
    for name, x in model.named_parameters():
        if any(name.endswith(part) for part in moved):
            assert not torch.equal(x, before[name]), name


def test_everything_at_once_and_from_a_cache(llama: Any) -> None:
    model = copy.deepcopy(llama)
    for absorb, _ in KINDS.values():
        absorb(model)
    tied = model.get_input_embeddings().weight is model.lm_head.weight
    assert tied
    ids = torch.tensor(IDS)
    with torch.no_grad():
        past = model(input_ids=ids[:, :7], use_cache=True).past_key_values
        got = model(input_ids=ids[:, 7:], past_key_values=past).logits.numpy()
    want = scores(llama)[:, 7:]
    assert np.abs(got - want).max() < OF_NORMS * np.abs(want).max()


def test_what_does_not_fit_changes_nothing(llama: Any) -> None:
    model = copy.deepcopy(llama)
    layer = model.model.layers[0]
    with pytest.raises(LayoutError, match="order of 39"):
        absorb_hidden([layer.mlp.gate_proj, layer.mlp.up_proj], layer.mlp.down_proj, Permutation.random(39))
    with pytest.raises(LayoutError, match="order of 40 for axis 1"):  # found after others that fit
        absorb_hidden(layer.mlp.gate_proj, layer.self_attn.o_proj, Permutation.random(40))
    with pytest.raises(LayoutError, match="3 orders"):
        absorb_values(layer.self_attn, [Permutation.random(8)] * 3)
    with pytest.raises(LayoutError, match="4 pairs"):
        absorb_rotary(model, Permutation.random(8))
    with pytest.raises(LayoutError, match="2 key-value heads"):
        absorb_heads(layer.self_attn, Permutation.random(4))
    with pytest.raises(LayoutError, match="without q_proj"):
        absorb_values(layer.mlp, Permutation.random(8))
    with pytest.raises(LayoutError, match="without embed_tokens"):
        absorb_residual(layer, Permutation.random(24))
    model.extra = torch.nn.Linear(24, 24)
    with pytest.raises(LayoutError, match="extra.weight"):
        absorb_residual(model, Permutation.random(24))
    model.model.rotary_emb.rope_type = "dynamic"
    with pytest.raises(LayoutError, match="'dynamic'"):
        absorb_rotary(model, Permutation.random(4))
    for name, x in llama.named_parameters():
        assert torch.equal(x, dict(model.named_parameters())[name]), name


def test_a_sorted_weight_needs_no_permutation_where_its_neighbour_takes_it() -> None:
    torch.manual_seed(1)
    first, second = torch.nn.Linear(16, 24).double(), torch.nn.Linear(24, 5).double()
    model = torch.nn.Sequential(first, torch.nn.GELU(), second)
    x = torch.randn(7, 16).double()
    found = einsort(first.weight, ordering="norm", topology="tt", bytes=1100)
    with torch.no_grad():
        first.weight.copy_(torch.as_tensor(found.dense()))
        want = model(x)
        rest, order = found.absorb(0)
        absorb_hidden(first, second, order)
        assert rest.bits.total < found.bits.total
        assert torch.equal(first.weight, torch.as_tensor(rest.dense()).double())
        assert torch.allclose(model(x), want, atol=1e-12)
        gathered, inputs = rest.absorb(1)  # the input is gathered instead
        assert gathered.permutations == () and gathered.bits.permutations == pytest.approx(0.0, abs=1e-9)
        first.weight.copy_(torch.as_tensor(gathered.dense()))
        assert torch.allclose(model(inputs.permute(x, 1)), want, atol=1e-12)


def test_flax() -> None:
    nnx = pytest.importorskip("flax.nnx")
    import jax.numpy as jnp

    from adtn_backends.jax import absorb_hidden as absorb

    first, second = nnx.Linear(6, 9, rngs=nnx.Rngs(0)), nnx.Linear(9, 4, rngs=nnx.Rngs(1))
    first.bias[...] = jnp.arange(9.0)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 6)), jnp.float32)
    want, kernel = second(nnx.relu(first(x))), np.asarray(first.kernel[...])
    order = Permutation.random(9, 3)
    absorb(first, second, order)
    assert np.array_equal(np.asarray(first.kernel[...]), kernel[:, order.array])
    np.testing.assert_allclose(second(nnx.relu(first(x))), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(LayoutError, match="order of 8"):
        absorb(first, second, Permutation.random(8))
