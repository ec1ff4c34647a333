"""The contract of optimizers, for every registered one and one that a user registers, on every backend."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Layout, Status
from adtn.errors import CompressError, FitError
from adtn.optim import FitOptions, _optimizer, optimizer_names, run_fit
from adtn.optim._objective import as_objective
from adtn.optim._run import Run
from autoray import do

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

W = np.add.outer(np.sin(np.arange(16) / 3), np.cos(np.arange(16) / 2)) + 0.1 * np.eye(16)
OWN = "sign-momentum"


class SignMomentum(adtn.Optimizer):
    """An optimizer that steps by the sign of a running mean of gradients, and uses all that a fit offers."""

    def init(self, params):
        return {k: x * 0.0 for k, x in params.items()}

    def step(self, at, state):
        means = {k: 0.9 * state[k] + 0.1 * at.grads[k] for k in state}
        rates = {k: at.rate * self.problem.rate_factors[k] for k in state}
        return {k: x - rates[k] * do("sign", means[k]) for k, x in at.params.items()}, means

    def export_state(self, state):
        return {k: self.problem.backend.to_numpy(x) for k, x in state.items()}

    def import_state(self, params, arrays):
        return {k: self.problem.backend.asarray(arrays[k], self.problem.device, self.problem.dtype) for k in params}


# options with which each optimizer converges
ROWS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.03},
    "adamw": {"lr": 0.03, "weight_decay": 0.01},
    "sgd": {"lr": 0.05, "momentum": 0.8},
    "lbfgs": {},
    "lm": {},
    OWN: {"lr": 0.01},
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(_optimizer, "_OPTIMIZERS", dict(_optimizer._OPTIMIZERS))
        adtn.register_optimizer(OWN, SignMomentum)
        yield


@pytest.fixture(params=ROWS)
def optimizer(request: pytest.FixtureRequest) -> str:
    return request.param


def make(**options: Any) -> adtn.Generator:
    options = {"scale": W, "dtype": "float64"} | options
    return adtn.Generator((16, 16), adtn.TTN(bond=2), layout=Layout.of((16, 16), 4), **options)


def fit(optimizer: str, **options: Any) -> adtn.Solution:
    options = {"steps": 24, "schedule": "constant", "progress": False} | ROWS[optimizer] | options
    return adtn.fit(options.pop("generator", make()), options.pop("target", W), optimizer=optimizer, **options)


def interrupt_at(step: int) -> Any:
    def callback(now: int, loss: float) -> None:
        if now == step:
            raise KeyboardInterrupt

    return callback


def error_of(generator: adtn.Generator) -> float:
    return float(np.linalg.norm(generator.weight(dtype="float64") - W) / np.linalg.norm(W))


def test_every_optimizer_has_a_row() -> None:
    assert set(ROWS) == set(optimizer_names())


def test_all_converge_and_return_the_best(optimizer: str, device: str) -> None:
    solution = fit(optimizer, device=device, generator=make(dtype="float32"), steps=80)
    assert solution.status in (Status.FINISHED, Status.STALLED)
    assert solution.loss < 0.7 * solution.history[0]
    assert solution.loss <= solution.history.min()
    assert solution.steps == len(solution.history)
    assert error_of(solution.generator) == pytest.approx(solution.relative_error, rel=1e-3)
    assert solution.loss == pytest.approx(solution.relative_error**2)


def test_the_best_parameters_outlive_worse_steps(optimizer: str, device: str) -> None:
    lr, worse = ROWS[optimizer].get("lr", 1.0), 4000 if optimizer == "sgd" else 40
    options = {"device": device, "dtype": "float32", "schedule": lambda step: lr * (1 if step < 15 else worse)}
    solution = fit(optimizer, **options, steps=30)
    assert solution.loss == pytest.approx(solution.history.min(), rel=1e-6) or optimizer in ("lbfgs", "lm")
    assert error_of(solution.generator) == pytest.approx(solution.relative_error, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backends_take_the_same_steps(optimizer: str, device: str, dtype: str) -> None:
    if dtype == "float64" and device.endswith("mps"):
        pytest.skip("Apple's GPU has no float64")
    want, got = (fit(optimizer, device=where, dtype=dtype, steps=8) for where in ("numpy:cpu", device))
    np.testing.assert_allclose(got.history, want.history, rtol=1e-9 if dtype == "float64" else 0.02)


def test_the_history_is_the_loss_before_each_step(optimizer: str) -> None:
    solution = fit(optimizer, steps=5)
    assert solution.history[0] == pytest.approx(error_of(make()) ** 2, rel=1e-9)
    assert len(solution.history) == solution.steps == 5


def test_a_resumed_fit_is_the_uninterrupted_one(optimizer: str, device: str, tmp_path: Path) -> None:
    whole = fit(optimizer, device=device, checkpoint=tmp_path / "whole", checkpoint_every=5)
    plain = fit(optimizer, device=device)
    assert np.array_equal(whole.history, plain.history), "a checkpoint does not change the steps"
    cut = {"device": device, "checkpoint": tmp_path / "cut", "checkpoint_every": 5}
    assert fit(optimizer, **cut, callbacks=[lambda step, _: step == 13]).status is Status.STOPPED
    again = fit(optimizer, **cut)
    assert np.array_equal(again.history, whole.history)
    assert (again.loss, again.steps, again.status) == (whole.loss, whole.steps, whole.status)
    for name, x in whole.generator.params.items():
        assert np.array_equal(again.generator.params[name], x), name


def test_a_callback_stops(optimizer: str, device: str) -> None:
    seen: list[float] = []
    solution = fit(optimizer, device=device, callbacks=[lambda step, loss: seen.append(loss) or step == 4])
    assert solution.status is Status.STOPPED
    assert solution.history.tolist() == seen and len(seen) == 5 and solution.steps == 4


def test_patience_stops(optimizer: str) -> None:
    # a tiny learning rate makes no progress; an optimizer without a learning rate starts where LM ended
    start = make() if "lr" in ROWS[optimizer] else fit("lm", steps=5000, patience=3).generator
    solution = fit(optimizer, generator=start, steps=5000, lr=1e-30, patience=3)
    assert solution.status is Status.STALLED
    assert solution.steps < 500


def test_a_tolerance_stops(optimizer: str, device: str) -> None:
    start = fit(optimizer, steps=1).history[0] ** 0.5
    solution = fit(optimizer, device=device, steps=3000, tolerance=0.9 * start)
    assert solution.status is Status.REACHED
    assert solution.relative_error <= 0.9 * start
    assert solution.history[-1] <= (0.9 * start) ** 2 < solution.history[:-1].min()


def test_a_time_limit_stops(optimizer: str) -> None:
    solution = fit(optimizer, steps=10**6, time_limit=0.0)
    assert solution.status is Status.TIME
    assert (solution.steps, len(solution.history)) == (0, 1)


def test_a_loss_that_is_not_finite_ends_with_the_best(optimizer: str) -> None:
    if optimizer == "lm":
        pytest.skip("needs a reconstruction")
    calls: list[float] = []

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        calls.append(float(np.sum((w - W) ** 2)) if len(calls) < 6 else np.nan)
        return calls[-1], 2 * (w - W)

    solution = fit(optimizer, target=loss, lr=1e-4)
    assert solution.status is Status.DIVERGED
    assert solution.loss == np.nanmin(solution.history)
    assert error_of(solution.generator) ** 2 * np.sum(W**2) == pytest.approx(solution.loss)


def test_levenberg_marquardt_does_not_step_to_a_loss_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    from adtn.optim._loss import Loss

    evaluate = Loss.__call__
    calls: list[int] = []

    def broken(self: Loss, *args: Any) -> Any:
        calls.append(1)
        loss, grads = evaluate(self, *args)
        return (loss if len(calls) == 1 else np.nan), grads

    monkeypatch.setattr(Loss, "__call__", broken)
    solution = fit("lm")
    assert solution.status is Status.STALLED
    assert np.isfinite(solution.loss) and solution.loss == solution.history[0]


def test_control_c_returns_the_best_parameters_and_a_fit_can_continue(
    optimizer: str, device: str, tmp_path: Path
) -> None:
    whole = fit(optimizer, device=device)
    path = tmp_path / "fit.checkpoint"
    broken = fit(optimizer, device=device, checkpoint=path, callbacks=[interrupt_at(5)])
    assert broken.status is Status.INTERRUPTED and "checkpoint" in broken.status.value
    assert path.exists()
    assert broken.loss == broken.history.min()
    assert error_of(broken.generator) == pytest.approx(broken.relative_error, rel=1e-3)
    rest = fit(optimizer, device=device, checkpoint=path)
    assert np.array_equal(rest.history, whole.history) and rest.loss == whole.loss


@pytest.mark.parametrize("every", [4, 100])
def test_control_c_in_the_middle_of_a_step(
    optimizer: str, every: int, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"device": device, "checkpoint_every": every, "steps": 12}
    whole = fit(optimizer, **options)
    cls = _optimizer.get_optimizer(optimizer)
    step, interrupts = cls.step, [True]

    def broken(self: Any, at: Any, state: Any) -> Any:
        reached = step(self, at, state)
        if at.step == 6 and interrupts.pop():
            raise KeyboardInterrupt
        return reached

    interrupts.insert(0, False)
    monkeypatch.setattr(cls, "step", broken)
    path = tmp_path / "fit.checkpoint"
    interrupted = fit(optimizer, checkpoint=path, **options)
    assert interrupted.status is Status.INTERRUPTED
    # an optimizer on the host leaves the parameters unchanged, but a backend may write to them
    assert interrupted.steps == (6 if cls.on_host else 4 if every == 4 else 0)
    np.testing.assert_array_equal(fit(optimizer, checkpoint=path, **options).history, whole.history)


def test_a_checkpoint_of_another_optimizer_is_refused(optimizer: str, tmp_path: Path) -> None:
    fit(optimizer, checkpoint=tmp_path / "c", steps=3)
    other = "adam" if optimizer != "adam" else OWN
    with pytest.raises(FitError, match="belongs to another fit"):
        fit(other, checkpoint=tmp_path / "c", steps=3)


def test_a_checkpoint_records_the_code_of_a_users_optimizer(tmp_path: Path) -> None:
    fit(OWN, checkpoint=tmp_path / "c", steps=3)

    class Other(SignMomentum):
        def step(self, at, state):
            return at.params, state

    _optimizer._OPTIMIZERS[OWN] = Other
    with pytest.raises(FitError, match="belongs to another fit"):
        fit(OWN, checkpoint=tmp_path / "c", steps=3)


def test_batches_are_followed_or_refused(optimizer: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 16))

    def loss(w, batch):
        r = batch @ (w - W).T
        return np.mean(r * r), 2 * r.T @ batch / r.size

    task = adtn.Task(loss, batches=lambda rng: (x[rng.integers(0, 64, 8)],))
    if optimizer in ("lbfgs", "lm"):
        with pytest.raises(FitError, match=f"optimizer='{optimizer}' needs .* Use 'adam'|for tasks use 'adam'"):
            fit(optimizer, target=task)
        return
    rate = 0.1 * ROWS[optimizer]["lr"] if optimizer == "sgd" else ROWS[optimizer]["lr"]
    solution = fit(optimizer, target=task, steps=60, lr=rate)
    assert error_of(solution.generator) < 0.9 * error_of(make())
    stopped = fit(optimizer, target=task, steps=60, lr=rate, callbacks=[lambda step, _: step == 33])
    assert stopped.loss == stopped.history[-1], "losses of different data have no smallest one"
    assert solution.status is Status.FINISHED


def test_options_are_taken_or_refused(optimizer: str) -> None:
    cls = _optimizer.get_optimizer(optimizer)
    for name, value, is_taken in (("clip", 0.5, cls.takes_clip), ("weight_decay", 0.1, cls.takes_weight_decay)):
        if is_taken:
            FitOptions(optimizer=optimizer, **{name: value})
        else:
            with pytest.raises(FitError, match=f"Got {name}.*'{optimizer}'"):
                FitOptions(optimizer=optimizer, **{name: value})
    with pytest.raises(FitError, match=r"Got lr_factors for \['nothing'\]"):
        fit(optimizer, lr_factors={"nothing": 1.0})


def test_first_order_optimizers_respect_single_rates() -> None:
    for optimizer in ("adam", "sgd", OWN):
        solution = fit(optimizer, lr_factors={"root": 0.0}, steps=3)
        assert np.array_equal(solution.generator.params["root"], make().params["root"])
        assert not np.array_equal(solution.generator.params["leaf2_0"], make().params["leaf2_0"])


@pytest.mark.parametrize("topology", [adtn.TTN(bond=2), adtn.MPO(bond=2), adtn.MERA(bond=2)], ids=repr)
def test_lbfgs_goes_as_far_as_scipys(topology: adtn.Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    from adtn.optim.solvers._vectors import flat, unflat
    from scipy.optimize import minimize

    class Scipys(SignMomentum):
        on_host = True

        def step(self, at, state):
            names = sorted(at.params)
            losses.append(at.loss)

            def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
                point = self.problem.evaluate(unflat(x, names, at.params))
                losses.append(point.loss)
                return point.loss, flat(point.grads, names)

            options = {"maxcor": 20, "maxiter": 60, "ftol": 0.0, "gtol": 1e-12}
            minimize(evaluate, flat(at.params, names), jac=True, method="L-BFGS-B", options=options)
            return None, state

    losses: list[float] = []
    adtn.register_optimizer("scipys", Scipys)
    generator = adtn.Generator((16, 16), topology, layout=Layout.of((16, 16), 4), scale=W, dtype="float64")
    adtn.fit(generator, W, optimizer="scipys", steps=1, progress=False)
    theirs, losses = losses[1:], []
    evaluate = Run.evaluate
    monkeypatch.setattr(Run, "evaluate", lambda self, x: losses.append(y := evaluate(self, x)) or y)  # type: ignore[arg-type]
    adtn.fit(generator, W, optimizer="lbfgs", steps=60, progress=False)
    ours = [point.loss for point in losses]  # type: ignore[attr-defined]
    for k in (5, 10, 20, 40, 60):
        assert min(ours[:k]) <= 1.01 * min(theirs[:k]) + 1e-12


# registration


def without(method: str) -> type[adtn.Optimizer]:
    own = {k: v for k, v in vars(SignMomentum).items() if k != method and not k.startswith("__")}
    return type("Partial", (adtn.Optimizer,), own)


@pytest.mark.parametrize("method", ["init", "step", "export_state", "import_state"])
def test_a_method_that_is_missing_is_named(method: str) -> None:
    with pytest.raises(FitError, match=rf"Got optimizer=Partial, which lacks {method}\(\); expected .* Add"):
        adtn.register_optimizer("partial", without(method))


@pytest.mark.parametrize(
    ("name", "cls", "message"),
    [
        ("adam", SignMomentum, "Got name='adam', which is already registered"),
        (OWN, SignMomentum, f"Got name='{OWN}', which is already registered"),
        ("", SignMomentum, "Got name=''; expected letters"),
        ("two words", SignMomentum, "Got name='two words'; expected letters"),
        (3, SignMomentum, "Got name=3; expected letters"),
        ("new", object, "Got optimizer=<class 'object'>; expected a subclass of adtn.Optimizer"),
        ("new", SignMomentum.step, "Got optimizer=<function .*expected a subclass of adtn.Optimizer"),
    ],
)
def test_what_cannot_be_registered(name: Any, cls: Any, message: str) -> None:
    with pytest.raises(FitError, match=message):
        adtn.register_optimizer(name, cls)
    assert "new" not in optimizer_names()


def test_names_are_looked_up_when_they_are_used() -> None:
    listed = f"expected 'adam', 'adamw', 'sgd', 'lbfgs', 'lm' or '{OWN}' \\(for your own.*--import MODULE"
    for call, error in (
        (lambda name: adtn.fit(make(), W, optimizer=name, steps=1), FitError),
        (lambda name: FitOptions(optimizer=name), FitError),
        (lambda name: adtn.Config(optimizer=name), CompressError),
        (lambda name: adtn.Config.from_dict({"optimizer": name}), CompressError),
    ):
        call(OWN)
        for wrong in ("lion", 3, None):
            with pytest.raises(error, match=f"Got optimizer={wrong!r}; {listed}"):
                call(wrong)


def test_a_model_is_compressed_by_a_users_optimizer() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 3))
    report = adtn.compress(
        model, adtn.Config(targets=["0"], topology=adtn.TTN(bond=2), smallest=0, steps=5, optimizer=OWN, lr=0.01)
    )
    assert report.layers[0].name == "0"


def test_parameters_that_are_lost_are_named() -> None:
    class Forgetful(SignMomentum):
        def step(self, at, state):
            params, state = super().step(at, state)
            return {k: x for k, x in params.items() if k != "root"}, state

    adtn.register_optimizer("forgetful", Forgetful)
    with pytest.raises(FitError, match=r"Got parameters \['iso.*from step\(\) of Forgetful; expected .*'root'"):
        adtn.fit(make(), W, optimizer="forgetful", steps=2)


def test_records_are_made_by_keywords() -> None:
    with pytest.raises(TypeError, match="positional"):
        FitOptions("numpy:cpu", "float32")  # type: ignore[misc]
    assert run_fit(make(), as_objective(W), FitOptions(steps=1, progress=False)).steps == 1


PLUGIN = """
import adtn
from autoray import do


class SignDescent(adtn.Optimizer):
    def init(self, params):
        return None

    def step(self, at, state):
        return {k: x - at.rate * do("sign", at.grads[k]) for k, x in at.params.items()}, state

    def export_state(self, state):
        return {}

    def import_state(self, params, arrays):
        return None
"""
REGISTER = '\n\nadtn.register_optimizer("sign-descent", SignDescent)\n'


def elsewhere(*args: str, code: int = 0) -> str:
    """Run code in another process, and return its output."""
    command = [sys.executable, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=None)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    np.save("w.npy", W)


@pytest.mark.usefixtures("_folder")
def test_the_command_line_imports_optimizers() -> None:
    Path("signplugin.py").write_text(PLUGIN + REGISTER)
    fit = ("-m", "adtn", "fit", "w.npy", "--steps", "3", "--optimizer", "sign-descent")
    said = elsewhere(*fit, code=1)
    assert "Got optimizer='sign-descent'; expected 'adam'" in said and "--import MODULE" in said
    assert "FINISHED" in elsewhere(*fit, "--import", "signplugin")
    assert "lbfgs or lm." in elsewhere("-m", "adtn", "fit", "--help")
    assert "lm or sign-descent." in elsewhere("-m", "adtn", "fit", "--import", "signplugin", "--help")


@pytest.mark.usefixtures("_folder")
def test_entry_points_are_optimizers() -> None:
    Path("signplugin.py").write_text(PLUGIN)
    Path("brokenplugin.py").write_text("raise RuntimeError('not today')")
    info = Path("signplugin-1.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: signplugin\nVersion: 1\n")
    points = "[adtn.optimizers]\nsign-descent = signplugin:SignDescent\nhalf = brokenplugin:Half\n"
    (info / "entry_points.txt").write_text(points)
    fit = ("-m", "adtn", "fit", "w.npy", "--steps", "3", "--optimizer")
    assert "FINISHED" in elsewhere(*fit, "sign-descent")
    said = elsewhere(*fit, "half", code=1)
    assert "brokenplugin:Half" in said and "not today" in said and said.count("\n") == 1
    assert "'half' or 'sign-descent'" in elsewhere(*fit, "lion", code=1)
    assert "lm, half or sign-descent." in elsewhere("-m", "adtn", "fit", "--help")
    program = "import sys, adtn; adtn.Config(optimizer='sign-descent'); print('signplugin' in sys.modules)"
    assert elsewhere("-c", program).strip() == "False", "a name is known before its package is imported"
