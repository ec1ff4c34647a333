"""Permutations of generated weights that find their neighbours by themselves, in both frameworks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.errors import LayoutError
from hypothesis import given
from hypothesis import strategies as st

from adtn_backends.shared._blocks import gathered, moved_blocks, of_blocks, pairs_in_blocks, spread

RNG = np.random.default_rng(0)
WIDTH, HIDDEN, HEADS, CHANNELS = 16, 24, 2, 8
HALF = CHANNELS // 2
X = RNG.standard_normal((3, 7, WIDTH))
PAIRS = np.concatenate([[2, 0, 3, 1], [6, 4, 7, 5]])
TOLERANCE = 1e-5  # float32, relative to the largest output


def generator(n_out: int, n_in: int, rows: Any = None, columns: Any = None, **options: Any) -> adtn.Generator:
    return adtn.Generator((n_out, n_in), adtn.TT(bond=3), permutations=[rows, columns], **options)


def inside(order: np.ndarray | None = None) -> np.ndarray:
    """Permute the channels inside each head, each in its own way, or all alike."""
    orders = [RNG.permutation(CHANNELS) if order is None else order for _ in range(HEADS)]
    return np.concatenate([CHANNELS * k + p for k, p in enumerate(orders)])


def bits(*sizes: int) -> float:
    return sum(math.log2(math.factorial(n)) for n in sizes)


# models


@dataclass(frozen=True)
class Framework:
    """A framework, as the tests need it."""

    name: str
    module: Any
    functions: Any
    absorb: Callable[..., Any]
    generated: Callable[..., Any]
    dense: Callable[[int, int, int], Any]
    norm: Callable[[int], Any]
    array: Callable[[Any], Any]
    frequencies: Callable[[Any, Any], None]
    attend: Callable[[Any, Any, Any], Any]  # of (batch, tokens, heads, channels)


def torch_framework() -> Framework:
    torch = pytest.importorskip("torch")
    from adtn_backends.torch import ADTNLinear, absorb_orders

    def dense(n_in: int, n_out: int, seed: int) -> Any:
        torch.manual_seed(seed)
        return torch.nn.Linear(n_in, n_out)

    def attend(q: Any, k: Any, v: Any) -> Any:
        heads = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2)

    functions = {"silu": torch.nn.functional.silu, "cat": torch.cat, "cos": torch.cos, "sin": torch.sin,
                 "arange": lambda n: torch.arange(n, dtype=torch.float32)}  # fmt: skip
    return Framework(
        name="torch",
        module=torch.nn.Module,
        functions=functions,
        absorb=absorb_orders,
        generated=ADTNLinear,
        dense=dense,
        norm=torch.nn.LayerNorm,
        array=lambda x: torch.tensor(np.asarray(x), dtype=torch.float32),
        frequencies=lambda module, x: module.register_buffer("inv_freq", x),
        attend=attend,
    )


def jax_framework() -> Framework:
    jax = pytest.importorskip("jax")
    nnx = pytest.importorskip("flax.nnx")
    from adtn_backends.jax import ADTNLinear, absorb_orders

    numpy = jax.numpy
    functions = {"silu": jax.nn.silu, "cat": numpy.concatenate, "cos": numpy.cos, "sin": numpy.sin,
                 "arange": numpy.arange}  # fmt: skip
    return Framework(
        name="jax",
        module=nnx.Module,
        functions=functions,
        absorb=absorb_orders,
        generated=ADTNLinear,
        dense=lambda n_in, n_out, seed: nnx.Linear(n_in, n_out, rngs=nnx.Rngs(seed)),
        norm=lambda n: nnx.LayerNorm(n, rngs=nnx.Rngs(0)),
        array=lambda x: numpy.asarray(x, "float32"),
        frequencies=lambda module, x: setattr(module, "inv_freq", nnx.Variable(x)),
        attend=jax.nn.dot_product_attention,
    )


@pytest.fixture(scope="module", params=["torch", "jax"])
def framework(request: pytest.FixtureRequest) -> Framework:
    return torch_framework() if request.param == "torch" else jax_framework()


def model_of(framework: Framework, layers: dict[str, Any], call: Callable[[Any, Any], Any]) -> Any:
    """Make a model of layers; integers in place of a layer make a dense one of these sizes."""

    class Model(framework.module):
        def __init__(self) -> None:
            super().__init__()
            for k, (name, layer) in enumerate(layers.items()):
                if isinstance(layer, adtn.Generator):
                    layer = framework.generated(layer, np.linspace(-1.0, 1.0, layer.shape[0]))
                elif isinstance(layer, tuple):
                    layer = framework.dense(*layer, k)
                if name == "frequencies":
                    framework.frequencies(self, layer)
                else:
                    setattr(self, name, layer)

        def forward(self, x: Any) -> Any:
            return call(self, x)

        __call__ = forward if framework.name == "jax" else framework.module.__call__

    return Model()


def numbers(x: Any) -> np.ndarray:
    return np.asarray(x.detach() if hasattr(x, "detach") else x, np.float64)


def weight_of(layer: Any) -> np.ndarray:
    """Return the weight of any linear layer as ``(n_out, n_in)``."""
    return numbers(layer.kernel[...]).T if hasattr(layer, "kernel") else numbers(layer.weight)


def bias_of(layer: Any) -> np.ndarray:
    return numbers(layer.bias if hasattr(layer.bias, "detach") else layer.bias[...])


def absorbed(framework: Framework, model: Any, x: Any = None) -> Any:
    """Return what was absorbed, after a check that outputs change by rounding only."""
    x = framework.array(X) if x is None else x
    before = numbers(model(x))
    found = framework.absorb(model, x)
    after = numbers(model(x))
    assert np.abs(after - before).max() <= TOLERANCE * np.abs(before).max()
    return found


def attention_of(framework: Framework, *, rotary: bool = False, **layers: Any) -> Any:
    """Make an attention with a residual connection."""
    call = framework.functions
    sizes = (WIDTH, HEADS * CHANNELS)

    def forward(self: Any, x: Any) -> Any:
        split = (*x.shape[:2], HEADS, CHANNELS)
        q, k, v = (layer(x).reshape(split) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if rotary:
            angles = call["arange"](x.shape[1])[:, None] * self.inv_freq[...]
            cos, sin = (call[name](call["cat"]([angles, angles], -1))[:, None] for name in ("cos", "sin"))
            q, k = (z * cos + call["cat"]([-z[..., HALF:], z[..., :HALF]], -1) * sin for z in (q, k))
        return x + self.o_proj(framework.attend(q, k, v).reshape(x.shape))

    every = {name: layers.get(name, sizes) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    if rotary:
        every["frequencies"] = framework.array(0.5 ** np.arange(HALF))
    return model_of(framework, every, forward)


# a kind at a time


def test_hidden_units(framework: Framework) -> None:
    p = RNG.permutation(HIDDEN)
    silu = framework.functions["silu"]
    layers = {"up": generator(HIDDEN, WIDTH, p), "down": (HIDDEN, WIDTH)}
    model = model_of(framework, layers, lambda self, x: x + self.down(silu(self.up(x))))
    weights = [weight_of(model.up), bias_of(model.up), weight_of(model.down), bias_of(model.down)]
    found = absorbed(framework, model)
    (one,) = found.absorbed
    assert (one.kind, one.freed, one.into, found.kept) == ("hidden", ("up outputs",), ("down inputs",), ())
    assert found.bits == one.bits == pytest.approx(bits(HIDDEN))
    assert model.up.generated.generator().permutations == ()
    q = np.argsort(p)  # the order of the network
    now = [weight_of(model.up), bias_of(model.up), weight_of(model.down), bias_of(model.down)]
    for x, want in zip(now, [weights[0][q], weights[1][q], weights[2][:, q], weights[3]], strict=True):
        assert np.array_equal(x, want)


@pytest.mark.parametrize("shared", [True, False])
def test_a_gated_layer_has_one_order(framework: Framework, shared: bool) -> None:
    p, q = RNG.permutation(HIDDEN), RNG.permutation(HIDDEN)
    layers: dict[str, Any] = {
        "gate": generator(HIDDEN, WIDTH, p),
        "up": generator(HIDDEN, WIDTH, p if shared else q) if shared else (WIDTH, HIDDEN),
        "down": generator(WIDTH, HIDDEN, None, p if shared else q),
    }
    silu = framework.functions["silu"]
    model = model_of(framework, layers, lambda self, x: x + self.down(silu(self.gate(x)) * self.up(x)))
    found = absorbed(framework, model)
    if shared:  # one order serves all three
        assert found.bits == pytest.approx(3 * bits(HIDDEN)) and not found.kept
    else:  # of two different orders one remains
        assert found.bits == pytest.approx(bits(HIDDEN))
        (left,) = found.kept
        assert "would need an order instead" in left.reason


def test_channels_of_values_inside_heads(framework: Framework) -> None:
    p = inside()
    model = attention_of(framework, v_proj=generator(WIDTH, WIDTH, p))
    found = absorbed(framework, model)
    (one,) = found.absorbed
    assert (one.kind, one.into) == ("values", ("o_proj inputs",)) and not found.kept
    model = attention_of(framework, o_proj=generator(WIDTH, WIDTH, None, p))
    (one,) = absorbed(framework, model).absorbed
    assert (one.kind, one.into) == ("values", ("v_proj outputs",))


@pytest.mark.parametrize("where", ["q_proj", "o_proj"])
def test_heads(framework: Framework, where: str) -> None:
    p = of_blocks(np.array([1, 0]), CHANNELS)
    orders = (None, p) if where == "o_proj" else (p, None)
    model = attention_of(framework, **{where: generator(WIDTH, WIDTH, *orders)})
    before = weight_of(model.k_proj)
    (one,) = absorbed(framework, model).absorbed
    assert one.kind == "heads" and one.bits == pytest.approx(bits(WIDTH))
    assert len(one.freed) == 1 and len(one.into) == 3
    assert np.array_equal(weight_of(model.k_proj), before[p])


def test_heads_whose_values_have_an_order_of_their_own(framework: Framework) -> None:
    p = inside()[of_blocks(np.array([1, 0]), CHANNELS)]
    found = absorbed(framework, attention_of(framework, v_proj=generator(WIDTH, WIDTH, p)))
    assert [one.kind for one in found.absorbed] == ["heads"] and not found.kept


def test_channels_of_keys_and_queries(framework: Framework) -> None:
    found = absorbed(framework, attention_of(framework, k_proj=generator(WIDTH, WIDTH, inside())))
    (one,) = found.absorbed
    assert (one.kind, one.freed, one.into) == ("keys", ("k_proj outputs",), ("q_proj outputs",))


def test_rotary_pairs(framework: Framework) -> None:
    p = inside(PAIRS)
    made = {"q_proj": generator(WIDTH, WIDTH, p), "k_proj": generator(WIDTH, WIDTH, p, seed=1)}
    model = attention_of(framework, rotary=True, **made)
    before = numbers(model.inv_freq[...])
    found = absorbed(framework, model)
    (one,) = found.absorbed
    assert (one.kind, one.into) == ("rotary", ("inv_freq",)) and one.bits == pytest.approx(2 * bits(WIDTH))
    assert np.array_equal(numbers(model.inv_freq[...]), before[np.argsort(PAIRS[:HALF])])
    # torn pairs cannot move
    model = attention_of(framework, rotary=True, k_proj=generator(WIDTH, WIDTH, inside()))
    found = absorbed(framework, model)
    assert not found.absorbed and len(found.kept) == 1


# outputs that are computed together


def fused(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate([part + WIDTH * k for k, part in enumerate(parts)])


SWAPPED = of_blocks(np.array([1, 0]), CHANNELS)
STAYS = np.arange(WIDTH)


@pytest.mark.parametrize(
    ("where", "order", "kind"),
    [
        ("c_attn", fused(STAYS, STAYS, inside()), "values"),
        ("c_attn", fused(inside(PAIRS), inside(PAIRS), STAYS), "keys"),
        ("c_attn", fused(SWAPPED, SWAPPED, SWAPPED), "heads"),
        ("c_attn", fused(SWAPPED, SWAPPED, SWAPPED[inside()]), "heads"),
        ("c_attn", fused(inside(PAIRS), STAYS, STAYS), ""),
        ("c_attn", fused(SWAPPED, SWAPPED, STAYS), ""),
        ("c_attn", RNG.permutation(3 * WIDTH), ""),
        ("c_proj", inside(), "values"),
        ("c_proj", SWAPPED, "heads"),
        ("c_proj", inside()[SWAPPED], "heads"),
        ("c_proj", RNG.permutation(WIDTH), ""),
    ],
    ids=[
        "values",
        "keys",
        "heads",
        "heads and values",
        "queries alone",
        "heads of queries and keys",
        "mixed",
        "values of the output",
        "heads of the output",
        "heads and values of the output",
        "mixed inputs",
    ],
)
def test_queries_keys_and_values_of_one_layer(framework: Framework, where: str, order: Any, kind: str) -> None:
    def call(self: Any, x: Any) -> Any:
        y = self.c_attn(x)
        parts = (y[..., WIDTH * k : WIDTH * (k + 1)].reshape(*x.shape[:2], HEADS, CHANNELS) for k in range(3))
        return x + self.c_proj(framework.attend(*parts).reshape(x.shape))

    sizes = {"c_attn": (WIDTH, 3 * WIDTH), "c_proj": (WIDTH, WIDTH)}
    made = generator(3 * WIDTH, WIDTH, order) if where == "c_attn" else generator(WIDTH, WIDTH, None, order)
    found = absorbed(framework, model_of(framework, sizes | {where: made}, call))
    assert [one.kind for one in found.absorbed] == ([kind] if kind else [])
    if kind:
        (one,) = found.absorbed
        assert one.bits == pytest.approx(bits(len(order))) and not found.kept
        rest = {"c_attn": () if kind == "keys" else ("c_proj inputs",), "c_proj": ("c_attn outputs",)}
        assert one.into == rest[where]
    else:
        assert len(found.kept) == 1


@pytest.mark.parametrize("where", ["gate_up", "down"])
def test_a_gate_in_one_layer_with_what_it_multiplies(framework: Framework, where: str) -> None:
    silu, p = framework.functions["silu"], RNG.permutation(HIDDEN)

    def call(self: Any, x: Any) -> Any:
        y = self.gate_up(x)
        return self.down(silu(y[..., :HIDDEN]) * y[..., HIDDEN:])

    sizes = {"gate_up": (WIDTH, 2 * HIDDEN), "down": (HIDDEN, 5)}
    up = generator(2 * HIDDEN, WIDTH, np.concatenate([p, p + HIDDEN]))
    made = up if where == "gate_up" else generator(5, HIDDEN, None, p)
    (one,) = absorbed(framework, model_of(framework, sizes | {where: made}, call)).absorbed
    assert one.kind == "hidden"


# where nothing moves


def twice(self: Any, x: Any) -> Any:
    y = self.first(x)
    return self.second(y) + y


def normalised(self: Any, x: Any) -> Any:
    return self.second(self.norm(self.first(x)))


def residual(self: Any, x: Any) -> Any:
    return self.second(x + self.first(x))


STAY: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "the residual stream": (residual, {}),
    "a normalisation between": (normalised, {"norm": True}),
    "an output used twice": (twice, {}),
}


@pytest.mark.parametrize("name", STAY)
@pytest.mark.parametrize("axis", [0, 1])
def test_nothing_moves(framework: Framework, name: str, axis: int) -> None:
    call, options = STAY[name]
    p = RNG.permutation(WIDTH)
    made = generator(WIDTH, WIDTH, *((p, None) if axis == 0 else (None, p)))
    layers = {"first": (WIDTH, WIDTH), "second": (WIDTH, WIDTH)} | {("first", "second")[axis]: made}
    if options:
        layers["norm"] = framework.norm(WIDTH)
    model = model_of(framework, layers, call)
    weights = [weight_of(model.first), weight_of(model.second)]
    found = absorbed(framework, model)
    assert not found.absorbed and found.bits == 0.0
    (left,) = found.kept
    assert left.axis == axis and left.bits == pytest.approx(bits(WIDTH)) and left.reason
    assert all(np.array_equal(a, b) for a, b in zip(weights, map(weight_of, (model.first, model.second)), strict=True))


def test_two_layers_that_read_the_same_outputs_take_the_order_together(framework: Framework) -> None:
    layers = {"first": generator(HIDDEN, WIDTH, RNG.permutation(HIDDEN)), "a": (HIDDEN, 5), "b": (HIDDEN, 5)}
    silu = framework.functions["silu"]
    model = model_of(framework, layers, lambda self, x: self.a(self.first(x)) * self.b(silu(self.first(x))))
    (one,) = absorbed(framework, model).absorbed
    assert one.into == ("a inputs", "b inputs")


def test_examples_that_do_not_show_an_order_move_nothing(framework: Framework) -> None:
    silu = framework.functions["silu"]
    layers = {"first": generator(HIDDEN, WIDTH, RNG.permutation(HIDDEN)), "second": (HIDDEN, 5), "third": (HIDDEN, 5)}
    blind = model_of(framework, layers, lambda self, x: self.second(0.0 * self.first(x)))
    assert not absorbed(framework, blind).absorbed
    unread = model_of(framework, layers, lambda self, x: (self.first(x), x)[1])
    assert "do not show" in absorbed(framework, unread).kept[0].reason
    half = model_of(
        framework, layers, lambda self, x: self.second(silu(self.first(x))) + self.third(0.0 * self.first(x))
    )
    assert not absorbed(framework, half).absorbed


def test_other_owners_of_a_weight_keep_their_order(framework: Framework) -> None:
    p = RNG.permutation(WIDTH)
    first = framework.generated(generator(WIDTH, WIDTH, p))
    based = framework.generated(generator(WIDTH, WIDTH, p, base=adtn.IdentityBase()))
    for layer, other, reason in ((first, framework.generated(first.generated), "another layer"), (based, None, "base")):
        layers = {"first": layer, "second": (WIDTH, WIDTH)} | ({} if other is None else {"other": other})
        found = absorbed(framework, model_of(framework, layers, lambda self, x: self.second(self.first(x))))
        assert not found.absorbed and reason in found.kept[0].reason


def test_codes_move_as_well(framework: Framework) -> None:
    made = generator(HIDDEN, WIDTH, RNG.permutation(HIDDEN)).rounded(adtn.Precision("int8"))
    model = model_of(framework, {"up": made, "down": (HIDDEN, 5)}, lambda self, x: self.down(self.up(x)))
    assert len(absorbed(framework, model).absorbed) == 1
    now = model.up.generated.generator()
    assert now.permutations == () and now.precision == made.precision
    assert np.array_equal(now.weight(), made.with_permutations([None, None]).weight())


def test_wrong_calls_are_refused(framework: Framework) -> None:
    model = model_of(framework, {"up": generator(5, WIDTH)}, lambda self, x: self.up(x))
    with pytest.raises(LayoutError, match="no example inputs"):
        framework.absorb(model)
    with pytest.raises(LayoutError, match="Got a list as the model"):
        framework.absorb([model], framework.array(X))
    rng = np.random.default_rng(0)
    model = model_of(framework, {"up": generator(5, WIDTH)}, lambda self, x: self.up(x) * rng.standard_normal())
    with pytest.raises(LayoutError, match="differ between two calls"):
        framework.absorb(model, framework.array(X))


def test_the_report_says_what_moved_and_why_the_rest_stays(framework: Framework) -> None:
    p, q = RNG.permutation(HIDDEN), RNG.permutation(WIDTH)
    model = model_of(
        framework, {"up": generator(HIDDEN, WIDTH, p, q), "down": (HIDDEN, 5)}, lambda self, x: self.down(self.up(x))
    )
    text = str(absorbed(framework, model))
    assert text.startswith("1 order absorbed, 79.0 bits saved; 1 kept (44.3 bits)")
    assert "hidden: up outputs -> down inputs" in text and "kept: up inputs" in text


# PyTorch alone


@pytest.mark.parametrize(
    ("orders", "kinds"),
    [
        ((fused(inside(PAIRS), inside(PAIRS), inside()), None), ["values"]),
        ((fused(inside(PAIRS), inside(PAIRS), np.arange(WIDTH)), None), ["keys"]),
        ((fused(*[of_blocks(np.array([1, 0]), CHANNELS)] * 3), None), ["heads"]),
        ((None, inside()), ["values"]),
        ((None, of_blocks(np.array([1, 0]), CHANNELS)), ["heads"]),
        ((RNG.permutation(3 * WIDTH), None), []),
        ((fused(inside(PAIRS), inside(), inside()), None), []),
    ],
    ids=["values", "keys", "heads", "values of the output", "heads of the output", "mixed", "keys alone"],
)
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_an_attention_whose_projections_are_one_weight(name: str, orders: Any, kinds: list[str]) -> None:
    here = torch_framework() if name == "torch" else jax_framework()
    projections = generator(3 * WIDTH, WIDTH, orders[0], base=None)
    output = generator(WIDTH, WIDTH, None, orders[1], seed=1)
    x = here.array(X)
    if name == "torch":
        import torch

        from adtn_backends.torch import ADTNMultiheadAttention, GeneratedWeight

        dense = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        torch.nn.init.normal_(dense.in_proj_bias)
        into, out = GeneratedWeight(projections), GeneratedWeight(output)
        model: Any = ADTNMultiheadAttention.of(dense, into, out).eval()
    else:
        from adtn_backends.jax import ADTNMultiheadAttention as Attention

        model = Attention(projections, output, HEADS, np.linspace(-1.0, 1.0, 3 * WIDTH))

    def call() -> np.ndarray:
        y = model(x, x, x)
        return numbers(y[0] if isinstance(y, tuple) else y)

    before = call()
    found = here.absorb(model, x, x, x)
    assert np.abs(call() - before).max() <= TOLERANCE * np.abs(before).max()
    # the other projection is generated, too: an order that both would need saves what it frees less what it costs
    moved = [one.kind for one in found.absorbed]
    saves = orders[0] is not None
    assert moved == (kinds if saves else [])
    if not saves:
        assert "would need an order instead" in found.kept[0].reason


def test_parameters_and_hooks_of_a_torch_model_stay() -> None:
    torch = pytest.importorskip("torch")
    from adtn_backends.torch import absorb_orders

    framework = torch_framework()
    silu = framework.functions["silu"]
    layers = {"up": generator(HIDDEN, WIDTH, RNG.permutation(HIDDEN)), "down": (HIDDEN, 5)}
    model = model_of(framework, layers, lambda self, x: self.down(silu(self.up(x))))
    model.train()
    before, x = {id(p) for p in model.parameters()}, framework.array(X)
    cached = model(x)
    absorb_orders(model, x)
    assert {id(p) for p in model.parameters()} == before and model.up.training
    assert not model.up._forward_hooks and not model.down._forward_pre_hooks
    torch.testing.assert_close(model(x), cached)  # not a weight that was cached before
    torch.testing.assert_close(copy.deepcopy(model)(x), cached)
    with pytest.raises(LayoutError, match="compiled"):
        absorb_orders(torch.compile(model, backend="eager"), x)


def test_grouped_queries_of_a_llama() -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from adtn_backends.torch import ADTNLinear, absorb_orders

    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=CHANNELS,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    pairs, wide = inside(PAIRS), np.concatenate([CHANNELS * k + PAIRS for k in range(4)])
    for k, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        attention.q_proj = ADTNLinear(generator(32, 24, wide, seed=k), False)
        attention.k_proj = ADTNLinear(generator(16, 24, pairs, seed=k), False)
        attention.v_proj = ADTNLinear(generator(16, 24, inside(), seed=k), False)
        mlp.down_proj = ADTNLinear(generator(24, 40, None, RNG.permutation(40), seed=k), False)
    ids = torch.tensor([[3, 14, 15, 9, 2, 6, 5, 35, 8, 9, 7, 9], [1] * 12])
    with torch.no_grad():
        before = model(ids).logits
        found = absorb_orders(model, input_ids=ids)
        assert (model(ids).logits - before).abs().max() <= TOLERANCE * before.abs().max()
    kinds = sorted(one.kind for one in found.absorbed)
    assert kinds == ["hidden", "hidden", "rotary", "values", "values"] and not found.kept
    assert found.bits == pytest.approx(2 * bits(32, 16, 16, 40))


@pytest.mark.parametrize("where", ["up", "down"])
def test_layers_of_a_scan_have_one_order(where: str) -> None:
    jax, nnx = pytest.importorskip("jax"), pytest.importorskip("flax.nnx")
    from adtn_backends.jax import ADTNLinear, absorb_orders

    p = RNG.permutation(HIDDEN)
    made = {"up": generator(HIDDEN, WIDTH, p), "down": generator(WIDTH, HIDDEN, None, p)}[where]

    class Block(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.up, self.down = nnx.Linear(WIDTH, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
            self.up.bias[...] = jax.random.normal(rngs.params(), (HIDDEN,))
            setattr(self, where, ADTNLinear(made))

        def __call__(self, x: Any) -> Any:
            return x + self.down(jax.nn.silu(self.up(x)))

    class Model(nnx.Module):
        def __init__(self) -> None:
            make = nnx.split_rngs(splits=3)(nnx.vmap(Block, in_axes=(0,), out_axes=0))
            self.blocks = make(nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)

    model, x = Model(), jax.numpy.asarray(X, "float32")
    before, dense = numbers(model(x)), getattr(model.blocks, "down" if where == "up" else "up")
    kernel = numbers(dense.kernel[...])
    assert len(kernel) == 3
    found = absorb_orders(model, x)
    (one,) = found.absorbed
    assert one.kind == "hidden" and not found.kept and one.bits == pytest.approx(bits(HIDDEN))
    assert not np.array_equal(numbers(dense.kernel[...]), kernel)
    assert np.abs(numbers(model(x)) - before).max() <= TOLERANCE * np.abs(before).max()


def test_projections_of_gpt2() -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from adtn_backends.torch import ADTNLinear, absorb_orders

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=WIDTH, n_layer=2, n_head=HEADS)
    model = transformers.GPT2LMHeadModel(config).eval()
    first, second = model.transformer.h
    first.attn.c_attn = ADTNLinear(generator(3 * WIDTH, WIDTH, fused(STAYS, STAYS, inside())))
    second.attn.c_proj = ADTNLinear(generator(WIDTH, WIDTH, None, SWAPPED))
    second.mlp.c_fc = ADTNLinear(generator(4 * WIDTH, WIDTH, RNG.permutation(4 * WIDTH)))
    ids = torch.tensor([[3, 14, 15, 9, 2, 6, 5, 35, 8, 9, 7, 9], [1, 5, 11, 30, 40, 2, 0, 7, 7, 23, 4, 31]])
    with torch.no_grad():
        before = model(ids).logits
        found = absorb_orders(model, input_ids=ids)
        assert (model(ids).logits - before).abs().max() <= TOLERANCE * before.abs().max()
    assert sorted(one.kind for one in found.absorbed) == ["heads", "hidden", "values"] and not found.kept


# blocks


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31))
def test_orders_of_repeated_blocks(blocks: int, size: int, times: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inner = np.concatenate([size * k + rng.permutation(size) for k in range(blocks)])
    index = inner[of_blocks(rng.permutation(blocks), size)]
    wide = spread(index, size, times)
    assert wide is not None
    x = rng.standard_normal((blocks, size))
    repeated = x.repeat(times, 0).reshape(-1)
    assert np.array_equal(repeated[wide], x.reshape(-1)[index].reshape(blocks, size).repeat(times, 0).reshape(-1))
    assert np.array_equal(gathered(wide, size, times), index)
    order = moved_blocks(index, size)
    assert order is not None and np.array_equal(np.sort(order), np.arange(blocks))


def test_torn_blocks_are_not_orders_of_blocks() -> None:
    torn = np.array([0, 2, 1, 3])
    assert moved_blocks(torn, 2) is None and spread(torn, 2, 2) is None
    assert gathered(np.array([1, 0, 2, 3]), 2, 2) is None  # copies of a block in different orders
    assert pairs_in_blocks(np.array([1, 0, 2, 3]), 4) is None
    assert np.array_equal(pairs_in_blocks(np.array([1, 0, 3, 2]), 4), [1, 0])  # halves
    assert np.array_equal(pairs_in_blocks(np.array([2, 3, 0, 1]), 4), [1, 0])  # neighbours
    assert pairs_in_blocks(np.array([0, 1, 3, 2]), 2) is None  # another order in every block
