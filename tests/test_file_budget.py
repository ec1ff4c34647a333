"""A budget in bytes is the size of the file: headers, codes and everything else, in every framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Config, Precision
from adtn.compression import model_of, run_folder
from adtn.errors import CompressError
from adtn.precision import round_symmetric
from hypothesis import given
from hypothesis import strategies as st

from table import BACKENDS

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
FRAMEWORKS = [name for name in ("torch", "jax") if name in BACKENDS]
N_IN, N_OUT, TOKENS = 64, 48, 400


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    return request.param


def model_of_words(framework: str) -> Any:
    """Make a model whose embedding, which is not compressed, is most of it."""
    if framework == "torch":
        import torch
        from torch import nn

        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(TOKENS, N_IN), nn.Linear(N_IN, N_OUT), nn.ReLU(), nn.Linear(N_OUT, 5))
    from flax import nnx

    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Embed(TOKENS, N_IN, rngs=rngs),
        nnx.Linear(N_IN, N_OUT, rngs=rngs),
        nnx.relu,
        nnx.Linear(N_OUT, 5, rngs=rngs),
    )


def words() -> list[Any]:
    random = np.random.default_rng(0)
    return [(random.integers(0, TOKENS, 32), random.integers(0, 5, 32)) for _ in range(3)]


def outputs(model: Any) -> np.ndarray:
    (values,) = model_of(model, None).outputs(words()[:1]) or ()
    return values


def config_of(framework: str, **options: Any) -> Config:
    targets = ["1"] if framework == "torch" else ["layers.1"]
    return Config(targets=targets, smallest=8, recipe="closed-form", **options)


@pytest.mark.parametrize(("most", "rest"), [(70_000, "float16"), (34_000, "int8"), (31_000, "int8")])
def test_the_file_is_within_the_budget(framework: str, most: int, rest: str, tmp_path: Path) -> None:
    config = config_of(framework, budget=adtn.Budget(bytes=most))
    report = run_folder(lambda: model_of_words(framework), config, tmp_path, data=words())
    size = (tmp_path / "state.safetensors").stat().st_size
    assert size == report.file_bytes <= most
    assert report.config == config
    assert report.rest == Precision(rest)
    assert f"as {rest}" in str(report)


def test_what_is_measured_is_what_is_stored(framework: str, tmp_path: Path) -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append(model_of_words(framework))
        return made[-1]

    run_folder(make, config_of(framework, budget=adtn.Budget(bytes=34_000)), tmp_path, data=words())
    back = adtn.load_model(model_of_words(framework), tmp_path)
    assert outputs(back).tobytes() == outputs(made[0]).tobytes()
    assert np.abs(outputs(back) - outputs(model_of_words(framework))).max() < 0.1


def test_budgets_are_used_up(framework: str, tmp_path: Path) -> None:
    # two matrices in the same model, so that there are sizes between the formats
    config = Config(smallest=8, recipe="closed-form", budget=adtn.Budget(bytes=31_500))
    report = run_folder(lambda: model_of_words(framework), config, tmp_path, data=words())
    assert 0.97 * 31_500 < (report.file_bytes or 0) <= 31_500


@pytest.mark.parametrize("most", [9_500, 7_300, 5_700])
def test_a_single_matrix_has_entropy_codes_of_the_rate_that_fits(most: int) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model, data = torch.nn.Sequential(torch.nn.Linear(128, 128)), [torch.randn(64, 128)]
    config = Config(recipe="closed-form", budget=adtn.Budget(bytes=most))
    report = adtn.compress(model, config, data=data)
    assert 0.98 * most < (report.file_bytes or 0) <= most


def test_without_data_everything_else_is_stored_small_as_well(framework: str, tmp_path: Path) -> None:
    config = config_of(framework, budget=adtn.Budget(bytes=34_000))
    report = run_folder(lambda: model_of_words(framework), config, tmp_path)
    assert (tmp_path / "state.safetensors").stat().st_size <= 34_000
    assert report.rest == Precision("int8")


def test_a_budget_below_everything_else_is_refused(framework: str, tmp_path: Path) -> None:
    config = config_of(framework, budget=adtn.Budget(bytes=20_000))
    with pytest.raises(CompressError, match="Got a budget of 20,000 bytes; the smallest file"):
        run_folder(lambda: model_of_words(framework), config, tmp_path, data=words())
    assert not (tmp_path / "state.safetensors").exists()


def test_narrowing_twice_changes_nothing(framework: str) -> None:
    for rest in (Precision("float16"), Precision("int8")):
        adapter = model_of(model_of_words(framework), None)
        adapter.narrow(rest)
        once = adapter.digest()
        adapter.narrow(rest)
        assert adapter.digest() == once


def test_tied_parameters_are_stored_once_as_codes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    def make() -> Any:
        model = model_of_words("torch")
        model.append(torch.nn.Linear(5, TOKENS))
        model.append(torch.nn.Linear(TOKENS, N_IN, bias=False))
        model[5].weight = torch.nn.Parameter(model[0].weight.detach().T.clone())
        model.append(torch.nn.Linear(N_IN, TOKENS, bias=False))
        model[6].weight = model[0].weight
        return model

    run_folder(make, config_of("torch", topology=adtn.LowRank(bond=4), rest="int8"), tmp_path)
    back = adtn.load_model(make(), tmp_path)
    assert back[6].weight is back[0].weight
    wanted = round_symmetric(make()[0].weight.detach().numpy()).decode()
    assert np.array_equal(back[0].weight.detach().numpy(), wanted)
    assert (tmp_path / "state.safetensors").stat().st_size < 2.6 * TOKENS * N_IN


@given(
    st.integers(1, 7),
    st.integers(1, 9),
    st.integers(-30, 30),
    st.integers(0, 2**32 - 1),
)
def test_symmetric_rounding_is_a_projection(rows: int, columns: int, exponent: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal((rows, columns)) * 2.0**exponent).astype(np.float32)
    once = round_symmetric(x)
    assert round_symmetric(once.decode()).data.tobytes() == once.data.tobytes()
    largest = np.abs(x).max(1, keepdims=True)
    assert (np.abs(once.decode() - x) <= 0.505 / 127 * largest).all()


def test_rows_of_very_different_sizes_are_rounded_once() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        sizes = 2.0 ** -random.uniform(0, 40, (20, 1))
        x = (random.standard_normal((20, 8)) * sizes).astype(np.float32)
        once = round_symmetric(x).decode()
        assert np.array_equal(round_symmetric(once).decode(), once)


def test_models_are_saved_from_python(framework: str, tmp_path: Path) -> None:
    model = model_of_words(framework)
    report = adtn.compress(model, config_of(framework), budget="34kB", data=words())
    adtn.save_model(model, tmp_path / "small", report)
    assert (tmp_path / "small/state.safetensors").stat().st_size == report.file_bytes <= 34_000
    back = adtn.load_model(model_of_words(framework), tmp_path / "small")
    assert outputs(back).tobytes() == outputs(model).tobytes()
    with pytest.raises(CompressError, match="pass the model that was compressed"):
        adtn.save_model(model_of_words(framework), tmp_path / "other", report)
    assert not (tmp_path / "other/state.safetensors").exists()
