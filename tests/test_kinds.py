"""A kind of layer is one row of a table: code for models, adapters and files reads the table and names no layer."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn
PACKAGE = Path(__file__).parents[1] / "backends" / "adtn_backends"
TTN = adtn.TTN(bond=2)
LAYERS = {
    "torch": "_linear _conv _embedding _attention _parametrized _transposed",
    "jax": "_linear _conv _embedding _attention",
}
OTHERS = {"Adapted", "GeneratedWeight", "Parametrized"}  # classes that are neither dense nor belong to one kind


def classes_asked_for(path: Path) -> set[str]:
    """Find the classes that a file tests by ``isinstance`` or ``type(x) is``, and all names of attentions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        asked: list[ast.AST] = []
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("isinstance", "issubclass")
        ):
            asked = list(ast.walk(node.args[1]))
        elif isinstance(node, ast.Compare):
            asked = [part for one in node.comparators for part in ast.walk(one)]
        named = [part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "") for part in asked]
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        names |= {one for one in (*named, name * ("Attention" in name)) if one}
    return names


def dense_and_generated(framework: str) -> set[str]:
    """Return the names of all classes in the table."""
    if framework == "torch":
        from adtn_backends.torch.layers import _kinds

        made: list[Any] = [kind.generated for kind in _kinds.KINDS if kind.generated is not None]
        return {cls.__name__ for kind in _kinds.KINDS for cls in (*kind.dense, *made)}
    from adtn_backends.jax.layers import _kinds as flax_kinds

    dense = {kind.dense.__name__ for kind in flax_kinds.KINDS}
    return dense | {cls.__name__ for cls in flax_kinds.GENERATED}


@pytest.mark.parametrize("framework", LAYERS)
def test_kinds_of_layers_are_named_in_their_own_files_only(framework: str) -> None:
    if framework == "jax":
        pytest.importorskip("flax")
    own = {PACKAGE / framework / "layers" / f"{name}.py" for name in LAYERS[framework].split()}
    assert all(path.exists() for path in own)
    known = dense_and_generated(framework) - OTHERS
    assert "ADTNLinear" in known
    for path in (PACKAGE / framework).rglob("*.py"):
        if path not in own:
            named = classes_asked_for(path)
            assert not named & known, path
            assert not {name for name in named if "Attention" in name}, path


class Doubled(nn.Linear):
    """A dense layer that the library does not know."""

    def forward(self, input: Any) -> Any:
        return 2.0 * super().forward(input)


def test_a_new_kind_of_torch_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from adtn_backends.torch import to_dense
    from adtn_backends.torch._model import TorchModel
    from adtn_backends.torch.layers import ADTNLinear, _kinds, _linear, add_adapter
    from adtn_backends.torch.layers._kind import Kind

    class ADTNDoubled(ADTNLinear):
        def forward(self, x: Any) -> Any:
            return 2.0 * super().forward(x)

        def to_dense(self) -> Any:
            dense = Doubled(self.in_features, self.out_features)
            dense.load_state_dict(super().to_dense().state_dict())
            return dense

    def build(dense: Any, weights: Any, bias: bool) -> nn.Module:
        return ADTNDoubled(weights[""], dense.bias if bias else False)

    row = Kind(dense=(Doubled,), generated=ADTNDoubled, build=build, rows=_linear.LINEAR.rows, adaptable=True)
    assert TorchModel(nn.Sequential(Doubled(8, 8)), None).layers()[0].adaptable is False
    monkeypatch.setattr(_kinds, "KINDS", (row, *_kinds.KINDS))
    x = torch.randn(5, 8)
    net = nn.Sequential(Doubled(8, 8), nn.ReLU())
    model = TorchModel(net, None)
    (layer,) = model.layers()
    assert (layer.kind, layer.weights, layer.adaptable) == ("Doubled", {"0": (8, 8)}, True)
    moments = model.second_moments(["0"], [(x, x)])
    np.testing.assert_allclose(moments["0"], (x.T @ x).numpy() / 5, rtol=1e-5)
    model.install({"0": adtn.Generator((8, 8), TTN)})
    assert type(net[0]) is ADTNDoubled
    assert model.predicted_seconds([x]).keys() == {"0"}
    dense: Any = to_dense(net)
    assert type(dense[0]) is Doubled
    torch.testing.assert_close(dense(x), net(x))
    model.restore()
    add_adapter(net, {"0": adtn.Generator((8, 8), TTN)})
    weight = net[0].weight.detach()
    torch.testing.assert_close(net[0](x), 2.0 * (x @ weight.T + net[0].bias), msg="twice the sum of both")


def test_a_new_kind_of_flax_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    nnx: Any = pytest.importorskip("flax.nnx")
    import jax.numpy as jnp

    from adtn_backends.jax import to_dense
    from adtn_backends.jax._model import NnxModel
    from adtn_backends.jax.layers import ADTNLinear, _dense, _kinds, _linear
    from adtn_backends.jax.layers._kind import Kind

    class FlaxDoubled(nnx.Linear):
        def __call__(self, inputs: Any) -> Any:
            return 2.0 * super().__call__(inputs)

    class ADTNDoubled(ADTNLinear):
        def __call__(self, x: Any) -> Any:
            return 2.0 * super().__call__(x)

        def to_dense(self) -> Any:
            dense = FlaxDoubled(self.in_features, self.out_features, rngs=nnx.Rngs(0))
            return _linear.LINEAR.filled(dense, self.weight, self.bias)

    row = Kind(
        dense=FlaxDoubled,
        generated=(ADTNDoubled,),
        build=lambda dense, weight, bias: ADTNDoubled(weight, bias),
        axes=_linear.LINEAR.axes,
        read=_linear.LINEAR.read,
        write=_linear.LINEAR.write,
        rows=_linear.LINEAR.rows,
    )
    net = nnx.Sequential(FlaxDoubled(8, 8, rngs=nnx.Rngs(0)))
    assert "no generated form of FlaxDoubled" in NnxModel(net, None).layers()[0].reason
    monkeypatch.setattr(_kinds, "KINDS", (row, *_kinds.KINDS))
    monkeypatch.setattr(_dense, "GENERATED", (ADTNDoubled, *_kinds.GENERATED))
    x = jnp.ones((5, 8))
    model = NnxModel(net, None)
    (layer,) = model.layers()
    assert (layer.kind, layer.weights) == ("FlaxDoubled", {"layers.0": (8, 8)})
    np.testing.assert_allclose(model.second_moments(["layers.0"], [(x, x)])["layers.0"], np.ones((8, 8)), rtol=1e-5)
    model.install({"layers.0": adtn.Generator((8, 8), TTN)})
    dense: Any = to_dense(net)
    assert type(dense.layers[0]) is FlaxDoubled
    np.testing.assert_allclose(dense(x), net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("framework", LAYERS)
def test_layers_are_priced_as_they_are_used(framework: str) -> None:
    """Price a linear layer by its rows, and a layer that always makes its weight by this weight."""
    gens = [adtn.Generator((8, 3, 3, 3), TTN), adtn.Generator((64, 128), TTN)]
    model: Any
    if framework == "torch":
        from adtn_backends.torch._model import TorchModel

        names, x = ["0", "2"], torch.zeros(5, 3, 6, 6)
        model = TorchModel(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 64)), None)
    else:
        nnx: Any = pytest.importorskip("flax.nnx")
        import jax.numpy as jnp

        from adtn_backends.jax._model import NnxModel

        names, x = ["layers.0", "layers.2"], jnp.zeros((5, 6, 6, 3))
        conv = nnx.Conv(3, 8, (3, 3), padding="VALID", rngs=nnx.Rngs(0))
        linear = nnx.Linear(128, 64, rngs=nnx.Rngs(0))
        model = NnxModel(nnx.Sequential(conv, lambda x: x.reshape(len(x), -1), linear), None)
    model.install(dict(zip(names, gens, strict=True)))
    device = f"{framework}:cpu"
    want = [adtn.plan(gens[0], "generate", device=device), adtn.plan(gens[1], "apply", device=device, batch=5)]
    assert model.predicted_seconds([x]) == {n: plan.predicted_seconds for n, plan in zip(names, want, strict=True)}
