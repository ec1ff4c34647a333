"""Unusual inputs and actions: targets, batches, Ctrl-C, activations, tiny weights, plugins, quimb's operators."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Layout, Status
from adtn.backends import check_device, get_backend
from adtn.errors import CompressError, FileFormatError, FitError, TopologyError
from adtn.topology import _activation
from autoray import do

from table import BACKENDS, TOPOLOGIES, Row, to_numpy, usable

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

W = np.add.outer(np.sin(np.arange(16) / 3), np.cos(np.arange(16) / 2))


def make(**options: Any) -> adtn.Generator:
    return adtn.Generator((16, 16), adtn.TTN(bond=2), layout=Layout.of((16, 16), 4), scale=W, **options)


# Ctrl-C


def interrupted_at(step: int):
    def callback(now: int, loss: float) -> None:
        if now == step:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize("every", [4, 100])
def test_an_interruption_in_the_middle_of_an_update(
    device: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "device": device,
        "steps": 12,
        "lr": 0.03,
        "progress": False,
        "dtype": "float64",
        "schedule": "constant",
        "lr_factors": {"root": 0.5},
        "checkpoint_every": every,
    }
    whole = adtn.fit(make(), W, **options)
    backend = type(get_backend(device.partition(":")[0]))
    made = backend.optimizer

    def optimizer(self: Any, name: str, **hyper: float) -> Any:
        found, calls = made(self, name, **hyper), []
        step = found.step

        def broken(*args: Any) -> Any:
            calls.append(step(*args))
            if len(calls) == 7:
                raise KeyboardInterrupt
            return calls[-1]

        found.step = broken
        return found

    path = tmp_path / "fit.checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(backend, "optimizer", optimizer)
        assert adtn.fit(make(), W, checkpoint=path, **options).status is Status.INTERRUPTED
    rest = adtn.fit(make(), W, checkpoint=path, **options)
    np.testing.assert_allclose(rest.history, whole.history, rtol=1e-6)
    assert rest.loss == pytest.approx(whole.loss, rel=1e-6)


def test_an_interruption_inside_the_objective(device: str) -> None:
    asked: list[int] = []

    def batches(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        asked.append(1)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return (rng.standard_normal((4, 16)),)

    def loss(weight: Any, x: Any) -> Any:
        y = do("matmul", x, do("transpose", weight, (1, 0)))
        mean = do("sum", y * y)
        return (mean, 2.0 * do("matmul", do("transpose", y, (1, 0)), x)) if device.startswith("numpy") else mean

    solution = adtn.fit(make(), adtn.Task(loss, batches=batches), steps=50, device=device, progress=False)
    assert solution.status is Status.INTERRUPTED
    assert solution.steps == len(solution.history) == 6


def test_a_second_interruption_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adtn.optim import _run

    def write(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_run, "write_checkpoint", write)
    with pytest.raises(KeyboardInterrupt):
        adtn.fit(make(), W, steps=9, callbacks=[interrupted_at(3)], checkpoint=tmp_path / "c", progress=False)


def test_an_interruption_ends_a_whole_model_and_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from adtn.compression import _local

    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit = adtn.fit
    monkeypatch.setattr(_local, "fit", lambda *args, **kw: fit(*args, **{**kw, "callbacks": [interrupted_at(1)]}))
    with pytest.raises(KeyboardInterrupt):
        adtn.compress(model, adtn.Config(topology=adtn.TTN(bond=2), smallest=0, steps=5))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


# targets and batches


def targets() -> dict[str, Any]:
    found: dict[str, Any] = {
        "list": W.tolist(),
        "column-major": np.asfortranarray(W),
        "int": np.rint(10 * W).astype(int),
    }
    try:
        import torch

        found["parameter"] = torch.nn.Parameter(torch.tensor(W))
        found["bfloat16"] = torch.tensor(W).bfloat16()
        found["grad"] = torch.tensor(W, requires_grad=True) * 1.0
    except ImportError:
        pass
    try:
        import jax.numpy as jnp

        found["jax"] = jnp.asarray(W)
        found["jax bfloat16"] = jnp.asarray(W, jnp.bfloat16)
    except ImportError:
        pass
    return found


TARGETS = targets()


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_of_every_kind_are_taken(kind: str, device: str) -> None:
    target = TARGETS[kind]
    want = 10 * W if kind == "int" else W
    gen = adtn.Generator((16, 16), adtn.MPO(bond=2), scale=target)
    assert gen.scale == pytest.approx(np.std(want), rel=0.05)
    solution = adtn.fit(gen, target, device=device, start="decomposition", steps=2, progress=False)
    assert solution.relative_error < 0.05
    adtn.DataAwareReconstruction(target, np.eye(16))


@pytest.mark.parametrize("factor", [1e30, 1e-30])
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "lm"])
@pytest.mark.parametrize("activation", ["silu", "identity"])
def test_the_size_of_a_target_does_not_matter(device: str, optimizer: Any, activation: str, factor: float) -> None:
    def error(factor: float, **options: Any) -> float:
        top = adtn.TTN(bond=2, activation=activation)
        gen = adtn.Generator((16, 16), top, layout=Layout.of((16, 16), 4), **options)
        if optimizer == "adam":
            gen = adtn.Generator((16, 16), top, layout=gen.layout, scale=np.std(W) * factor)
        found = adtn.fit(gen, W * factor, device=device, optimizer=optimizer, steps=15, lr=0.05, progress=False)
        away = np.linalg.norm(found.generator.weight().astype(float) / factor - W) / np.linalg.norm(W)
        assert away == pytest.approx(found.relative_error, rel=0.02, abs=1e-3)
        return found.relative_error

    assert error(factor, scale=W * factor) == pytest.approx(error(1.0, scale=W), rel=0.3, abs=0.02)
    assert error(factor) < 1.01


def test_reading_a_target_takes_no_memory() -> None:
    target = np.random.default_rng(0).standard_normal((2048, 1024)).astype("float32").T
    tracemalloc.start()
    try:
        adtn.Reconstruction(target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    with pytest.raises(FitError, match="2 entries that are NaN"):
        adtn.Reconstruction(np.array([[1.0, np.nan], [np.inf, 2.0]]))


def test_a_task_says_what_its_function_should_return(device: str) -> None:
    for wrong in (None, "loss", np.ones(3)):
        with pytest.raises(FitError, match=r"Got .* from the function of a task .*expected"):
            adtn.fit(make(), adtn.Task(lambda weight, wrong=wrong: wrong), steps=2, device=device, progress=False)


class Models:
    """A model of two layers in both frameworks."""

    frameworks = ("torch", "flax")

    def __init__(self, framework: str) -> None:
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((8, 16)).astype("float32"), rng.integers(0, 3, 8)
        if framework == "torch":
            torch = pytest.importorskip("torch")
            nn = torch.nn
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 1), nn.Linear(1, 1), nn.Linear(1, 3))
            self.names, self.x, self.y = ("0", "1", "2"), torch.tensor(x), torch.tensor(y)
        else:
            nnx = pytest.importorskip("flax.nnx")
            jnp = pytest.importorskip("jax.numpy")
            sizes = ((16, 16), (16, 1), (1, 1), (1, 3))
            self.model = nnx.Sequential(*(nnx.Linear(*pair, rngs=nnx.Rngs(k)) for k, pair in enumerate(sizes)))
            self.names, self.x, self.y = ("layers.0", "layers.1", "layers.2"), jnp.asarray(x), jnp.asarray(y)

    def compress(self, **options: Any) -> adtn.CompressReport:
        known = {"topology": adtn.TTN(bond=2), "targets": self.names[:1], "smallest": 0, "steps": 2, "tune_steps": 2}
        return adtn.compress(self.model, adtn.Config(**known | options.pop("config", {})), **options)


@pytest.mark.parametrize("framework", Models.frameworks)
def test_one_batch_needs_no_list(framework: str) -> None:
    m = Models(framework)
    report = m.compress(data=(m.x, m.y), test=(m.x, m.y))
    assert report.after.accuracy is not None and len(report.losses) == 2
    m = Models(framework)
    again = m.compress(data=[(m.x, m.y)], test=[(m.x, m.y)])
    np.testing.assert_allclose(report.losses, again.losses, rtol=1e-5)


@pytest.mark.parametrize("framework", Models.frameworks)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda m: {"data": m.x}, "Got data=an array .*expected batches"),
        (lambda m: {"data": [(m.x, m.y + 7)]}, "Got labels from 7 to 9; expected indices of the 3 classes"),
        (lambda m: {"data": [(m.x, m.y - 2)]}, "Got labels from -2 to 0; expected indices of the 3 classes"),
        (lambda m: {"data": [(m.x, m.y)], "test": [(m.x, m.y + 1)]}, "Got labels from 1 to 3; expected"),
        (
            lambda m: {"data": [(m.x, m.y)], "loss": lambda *_: None},
            r"Got None from loss\(model, batch\); expected one",
        ),
        (lambda m: {"data": [(m.x, m.y)], "loss": lambda model, b: model(b[0])}, r"from loss\(.*; expected one number"),
    ],
)
def test_invalid_batches_and_losses_are_refused(framework: str, options: Any, message: str) -> None:
    m = Models(framework)
    with pytest.raises(CompressError, match=message):
        m.compress(**options(m))


# weights with one entry

NEED_LEGS = (adtn.BrickWall, adtn.TT, adtn.MPO, adtn.TensorRing, adtn.CP, adtn.RandomFeatures)
NEED_FOUR_AXES = ("low-rank-spatial", "tucker-2", "tucker-uncut")
ONE_ENTRY = [(1,), (1, 1), (1, 1, 1, 1)]


# JAX compiles a program for every shape, which takes longer than all the rest
@pytest.mark.parametrize(
    ("key", "shape"),
    [(key, shape) for key in BACKENDS for shape in (ONE_ENTRY if not key.startswith("jax") else ONE_ENTRY[1:2])],
    ids=str,
)
def test_one_entry_works_or_is_refused(row: Row, key: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    device = usable(key)
    refused = isinstance(row.topology, NEED_LEGS) or row in (TOPOLOGIES["ttn-ternary"], TOPOLOGIES["attn-pairs"])
    refused |= row in [TOPOLOGIES[name] for name in NEED_FOUR_AXES] and len(shape) != 4
    if refused or row is TOPOLOGIES["ttn-some"]:
        with pytest.raises(TopologyError, match="single entry without legs" if refused else "has levels 0..0"):
            adtn.Generator(shape, row.topology)
        return
    gen = adtn.Generator(shape, row.topology)
    weight = gen.weight(device)
    assert tuple(weight.shape) == shape
    assert gen.num_active_params >= 1 and len(gen.networks()) == len(gen.segments)
    if len(shape) == 2:
        backend, where = check_device(device, "float32")
        x = backend.asarray(np.full((3, 1), 2.0), where, "float32")
        np.testing.assert_allclose(to_numpy(gen.apply(x)), 2.0 * to_numpy(weight).reshape(1, 1).repeat(3, 0), rtol=1e-5)
    solution = adtn.fit(gen, np.full(shape, 0.5 * gen.scale), device=device, steps=200, lr=0.05, progress=False)
    assert solution.relative_error < 0.2 or solution.loss < solution.history[0]
    adtn.save(tmp_path / "one.safetensors", gen)
    np.testing.assert_array_equal(adtn.load(tmp_path / "one.safetensors").weight(), gen.weight())


@pytest.mark.parametrize("framework", Models.frameworks)
@pytest.mark.parametrize("topology", [adtn.TTN(bond=2), adtn.CP(bond=2), adtn.BrickWall(), adtn.MPO(bond=2)], ids=repr)
def test_a_layer_with_one_entry_stays_dense(framework: str, topology: adtn.Topology) -> None:
    m = Models(framework)
    names = (m.names[0], m.names[2])
    report = m.compress(config={"targets": names, "topology": topology})
    assert [one.name for one in report.layers] == [names[0]]
    assert "single entry" in report.dense[names[1]]


@pytest.mark.parametrize("framework", Models.frameworks)
def test_a_budget_leaves_one_entry_alone(framework: str) -> None:
    m = Models(framework)
    names = (m.names[0], m.names[2])
    config = {
        "targets": names,
        "budget": adtn.Budget(ratio=1.5),
        "candidates": (adtn.TTN(), adtn.CP()),
        "largest_error": 1.0,
    }
    assert "single entry" in m.compress(config=config).dense[names[1]]


# custom activations

ELEMENTWISE: dict[str, tuple[Any, Any]] = {
    "power": (lambda z: z**3, lambda z: 3.0 * z**2),
    "square": (lambda z: do("square", z), lambda z: 2.0 * z),
    "root": (lambda z: (z * z + 1.0) ** 0.5, lambda z: z / do("sqrt", z * z + 1.0)),
    "base": (lambda z: 2.0**z, lambda z: 2.0**z * np.log(2.0)),
    "cosh": (lambda z: do("cosh", z), lambda z: do("sinh", z)),
    "arcsinh": (lambda z: do("arcsinh", z), lambda z: 1.0 / do("sqrt", z * z + 1.0)),
    "arctan": (lambda z: do("arctan", z), lambda z: 1.0 / (1.0 + z * z)),
    "expm1": (lambda z: do("expm1", z), lambda z: do("exp", z)),
    "exp2": (lambda z: do("exp2", z), lambda z: do("exp2", z) * np.log(2.0)),
    "cbrt": (lambda z: do("cbrt", z), lambda z: 1.0 / (3.0 * do("square", do("cbrt", z)))),
    "abs": (lambda z: abs(z), lambda z: do("sign", z)),
    "absolute": (lambda z: do("abs", z) * z, lambda z: 2.0 * do("abs", z)),
    "clip": (lambda z: do("clip", z, -1.0, 1.0), lambda z: (z > -1.0) & (z < 1.0)),
    "maximum": (lambda z: do("maximum", z, 0.0), lambda z: z > 0),
    "minimum": (lambda z: do("minimum", z, 0.5 * z), lambda z: do("where", z < 0, 1.0, 0.5)),
    "hypot": (lambda z: do("hypot", z, 1.0), lambda z: z / do("hypot", z, 1.0)),
    "logaddexp": (lambda z: do("logaddexp", z, 0.0), lambda z: 1.0 / (1.0 + do("exp", -z))),
    "where": (lambda z: do("where", z > 0, z, do("expm1", z)), lambda z: do("where", z > 0, 1.0, do("exp", z))),
    "expit": (
        lambda z: do("scipy.special.expit", z),
        lambda z: do("scipy.special.expit", z) * (1.0 - do("scipy.special.expit", z)),
    ),
    "erf": (lambda z: do("scipy.special.erf", z), lambda z: do("exp", -z * z) * (2.0 / np.sqrt(np.pi))),
    "reciprocal": (lambda z: do("reciprocal", 1.0 + z * z), lambda z: -2.0 * z / (1.0 + z * z) ** 2),
    "remainder": (lambda z: (z % 8.0) * z, lambda z: z % 8.0 + z),
    "double constant": (lambda z: z * np.float64(2.0), lambda z: z * 0.0 + np.float64(2.0)),
}


@pytest.fixture
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove registrations after a test."""
    from adtn.topology import _topology

    monkeypatch.setattr(_activation, "_ACTIVATIONS", dict(_activation._ACTIVATIONS))
    monkeypatch.setattr(_topology, "_TOPOLOGIES", dict(_topology._TOPOLOGIES))


@pytest.mark.usefixtures("_registry")
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_elementwise_function_is_an_activation(name: str, device: str) -> None:
    adtn.register_activation(f"own {name}", *ELEMENTWISE[name])
    gen = adtn.Generator((16, 16), adtn.TTN(bond=2, activation=f"own {name}"), layout=Layout.of((16, 16), 4), scale=W)
    np.testing.assert_allclose(to_numpy(gen.weight(device, "float32")), gen.weight(), rtol=2e-3, atol=1e-4 * gen.scale)
    for dtype in ("float32", "float16"):
        assert str(check_device(device, dtype)[0].dtype_of(gen.weight(device, dtype))) == dtype
    assert adtn.plan(gen, "fit", device=device).predicted_seconds > 0
    solution = adtn.fit(gen, W, device=device, steps=8, lr=0.01, progress=False)
    assert solution.loss < solution.history[0]


@pytest.mark.usefixtures("_registry")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda z: z / do("sum", do("abs", z)), "mixes entries"),
        (lambda z: do("sum", z), "mixes entries|fails"),
        (lambda z: do("log", z), "expected finite numbers"),
        (lambda z: np.square(z), "fails on null"),
        (lambda z: do("maximum", 0.0, z), "fails on null"),
        (lambda z: do("unheard_of", z), "fails .*unheard_of"),
        (lambda z: z.clip(0, 1), "fails on null"),
        (lambda a, b: a, "fails .*argument"),
        (lambda z: None, "fails"),
    ],
)
def test_functions_that_are_not_elementwise_are_refused(value: Any, message: str) -> None:
    with pytest.raises(TopologyError, match=f"Got a value .*({message})"):
        adtn.register_activation("odd", value, lambda z: z)


def test_no_activation_is_the_identity() -> None:
    assert adtn.TTN(bond=2, activation=None) == adtn.TTN(bond=2, activation="identity")
    assert hash(adtn.TTN(bond=np.int64(2))) == hash(adtn.TTN(bond=2))
    assert repr(adtn.MERA(bond=2, noise=np.float32(0.5), periodic=np.True_)) == repr(
        adtn.MERA(bond=2, noise=0.5, periodic=True)
    )
    assert type(Layout.of(np.array([8, 8]), np.int32(4)).shape[0]) is int
    assert adtn.fit(make(), W, steps=np.array(3), lr=np.float32(0.01), patience=np.int8(2), progress=False).steps == 3


# topologies and activations of another process

PLUGIN = """
from dataclasses import dataclass
import adtn
from adtn.topology import Core, Segment

adtn.register_activation("bell", lambda z: 1.0 / (1.0 + z * z), lambda z: -2.0 * z / (1.0 + z * z) ** 2)


@adtn.register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class Plain(adtn.Topology):
    bond: int = 2

    def levels(self, layout):
        names, dims = layout.leg_names, layout.dims
        pairs = enumerate(zip(names, dims))
        cores = tuple(
            Core(name=f"v{k}", inds=(n, "b"), shape=(d, self.bond), param=f"v{k}", kind="factor") for k, (n, d) in pairs
        )
        return [Segment((), cores, names)]
"""
SAVE = """
import adtn, trustplugin
lay = adtn.Layout.of((16, 16), 4)
adtn.save("own.safetensors", adtn.Generator((16, 16), trustplugin.Plain(), layout=lay))
adtn.save("bell.safetensors", adtn.Generator((16, 16), adtn.TTN(bond=2, activation="bell"), layout=lay))
"""


def elsewhere(*args: str, code: int = 0) -> str:
    """Run code in another process, and return its output."""
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def _plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trustplugin.py").write_text(PLUGIN)
    np.save("w.npy", W)
    elsewhere("-c", SAVE)


@pytest.mark.usefixtures("_plugin")
def test_a_file_with_a_topology_of_ones_own_is_not_broken() -> None:
    for file, name in (("own.safetensors", "'Plain'"), ("bell.safetensors", "'bell'")):
        with pytest.raises(
            FileFormatError, match=rf"{name}, which is not registered here.*--import.*adtn\.(top|act)"
        ) as error:
            adtn.load(file)
        assert "Get the file again" not in str(error.value)
        assert "not registered here" in elsewhere("-m", "adtn", "inspect", file, code=1)
        assert "segment 1" in elsewhere("-m", "adtn", "inspect", file, "--import", "trustplugin")
    said = elsewhere("-m", "adtn", "fit", "w.npy", "--topology", "plain", "--steps", "2", code=1)
    assert "not registered here" in said and "--import" in said
    assert "saved" in elsewhere(
        "-m", "adtn", "fit", "w.npy", "--topology", "plain", "--steps", "2", "--import", "trustplugin"
    )
    assert "Plain" in elsewhere("-m", "adtn", "plan", "16x16", "--topology", "plain", "--import", "trustplugin")


@pytest.mark.usefixtures("_plugin")
def test_entry_points_are_asked() -> None:
    info = Path("trustplugin-1.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trustplugin\nVersion: 1\n")
    points = "[adtn.topologies]\nplain = trustplugin:Plain\nhalf = trustbroken:Half\n"
    points += "\n[adtn.activations]\nbell = trustplugin\n"
    (info / "entry_points.txt").write_text(points)
    Path("trustbroken.py").write_text("raise RuntimeError('not today')")
    for file in ("own.safetensors", "bell.safetensors"):
        assert "(16, 16)" in elsewhere("-c", f"import adtn; print(adtn.load('{file}').shape)")
    said = elsewhere("-m", "adtn", "fit", "w.npy", "--topology", "half", code=1)
    assert "trustbroken:Half" in said and "not today" in said and said.count("\n") == 1
    assert elsewhere("-c", "import sys, adtn; adtn.TTN(); print('trustplugin' in sys.modules)").strip() == "False"


# operators of quimb


def operators() -> dict[str, Any]:
    import quimb.tensor as qtn

    return {
        "mpo": qtn.MPO_rand(3, 2, phys_dim=2, dtype="float64", seed=1),
        "names": qtn.MPO_rand(3, 2, phys_dim=3, dtype="float64", upper_ind_id="row{}", lower_ind_id="col{}", seed=2),
        "swapped names": qtn.MPO_rand(3, 2, dtype="float64", upper_ind_id="b{}", lower_ind_id="k{}", seed=3),
        "cyclic": qtn.MPO_rand(4, 2, dtype="float64", cyclic=True, seed=4),
        "pepo": qtn.PEPO.rand(2, 2, 2, dtype="float64", seed=5),
    }


@pytest.mark.parametrize("kind", ["mpo", "names", "swapped names", "cyclic", "pepo"])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_an_operator_is_its_dense_matrix(kind: str, seed: int | None) -> None:
    operator = operators()[kind]
    if seed is not None:
        rng = np.random.default_rng(seed)
        for tensor in operator.tensors:
            tensor.transpose_(*rng.permutation(tensor.inds))
    want, d, n = operator.to_dense(), operator.phys_dim(), operator.nsites
    gen = adtn.Generator.from_networks([operator], shape=want.shape, dtype="float64")
    np.testing.assert_allclose(gen.weight(), want, rtol=1e-10)
    for order in ("axis", "interleaved"):
        layout = Layout.from_factors(want.shape, [(d,) * n] * 2, order)
        gen = adtn.Generator.from_networks([operator], layout=layout, dtype="float64")
        np.testing.assert_allclose(gen.weight(), want, rtol=1e-10)
    rows, columns = operator.upper_inds, operator.lower_inds
    gen = adtn.Generator.from_networks([operator], shape=want.shape[::-1], outputs=[*columns, *rows], dtype="float64")
    np.testing.assert_allclose(gen.weight(), want.T, rtol=1e-10)
    with pytest.raises(TopologyError, match="Got outputs=.*and a layout.*expected the same legs"):
        adtn.Generator.from_networks([operator], layout=layout, outputs=[*rows, *columns])
    with pytest.raises(TopologyError, match="expected outputs="):
        adtn.Generator.from_networks([operator], shape=(d, want.size // d))


def test_a_vector_and_a_network_without_names() -> None:
    import quimb.tensor as qtn

    vector = qtn.MPS_rand_state(4, 3, dtype="float64", seed=1)
    for tensor in vector.tensors:
        tensor.transpose_(*tensor.inds[::-1])
    gen = adtn.Generator.from_networks([vector], shape=(16,), dtype="float64")
    np.testing.assert_allclose(gen.weight(), vector.to_dense().ravel(), rtol=1e-10)
    plain = qtn.TensorNetwork(list(operators()["mpo"]))
    with pytest.raises(TopologyError, match="expected outputs="):
        adtn.Generator.from_networks([plain], shape=(8, 8))
