"""A budget that is too small is refused with the least one, and that one works."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Budget, Config
from adtn.compression import run_folder
from adtn.errors import CompressError

from table import BACKENDS

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
FRAMEWORKS = [name for name in ("torch", "jax") if name in BACKENDS]
FIRST = Config(recipe="closed-form")


def decaying(shape: tuple[int, int]) -> np.ndarray:
    """Make a weight with a spectrum like that of trained ones."""
    random = np.random.default_rng(0)
    left, _, right = np.linalg.svd(random.standard_normal(shape), full_matrices=False)
    return ((left * 0.8 ** np.arange(min(shape))) @ right).astype(np.float32)


def net(framework: str) -> Any:
    """Make a model with two weights, of which one has a decaying spectrum, and an embedding that is not compressed."""
    if framework == "torch":
        import torch
        from torch import nn

        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(50, 48), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48))
        with torch.no_grad():
            model[1].weight.copy_(torch.from_numpy(decaying((64, 48))))
        return model
    from flax import nnx

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Embed(50, 48, rngs=rngs), nnx.Linear(48, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 48, rngs=rngs)
    )
    model.layers[1].kernel[...] = decaying((48, 64))
    return model


def config_of(framework: str, **options: Any) -> Config:
    return replace(FIRST, targets=["Linear"], **options)


def words() -> list[Any]:
    random = np.random.default_rng(0)
    return [(random.integers(0, 50, 32), random.integers(0, 48, 32)) for _ in range(3)]


def least_of(error: Any, unit: str) -> int:
    text = str(error.value)
    assert not re.search(r"-\d", text), text
    found = re.search(rf"everything but the chosen layers takes ([\d,]+)\. Allow at least ([\d,]+) {unit}", text)
    assert found, text
    rest, least = (int(number.replace(",", "")) for number in found.groups())
    assert 0 < rest < least
    return least


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(
    ("few", "options", "has_data"),
    [
        (1, {}, True),
        (1, {}, False),
        (3_000, {"rest": "same"}, True),
        (1, {"candidates": (adtn.MPO(),), "precisions": ()}, False),
    ],
    ids=str,
)
def test_the_least_file_is_named_and_possible(
    framework: str, few: int, options: Any, has_data: bool, tmp_path: Path
) -> None:
    data = words() if has_data else None
    config = config_of(framework, **options)
    with pytest.raises(CompressError, match=f"Got a budget of {few:,} bytes") as caught:
        adtn.compress(net(framework), config, budget=f"{few}B", data=data)
    least = least_of(caught, "bytes")
    assert f"budget='{least}B'" in str(caught.value)
    model = net(framework)
    report = adtn.compress(model, config, budget=f"{least}B", data=data)
    adtn.save_model(model, tmp_path / "small", report)
    assert (tmp_path / "small/state.safetensors").stat().st_size == report.file_bytes
    assert report.file_bytes == least


@pytest.mark.parametrize("has_data", [True, False], ids=["data", "no-data"])
@pytest.mark.parametrize("budget", [Budget(params=1), Budget(params=2513), Budget(ratio=300.0)], ids=str)
def test_the_least_parameters_are_named_and_possible(framework: str, has_data: bool, budget: Budget) -> None:
    data = words() if has_data else None
    config = config_of(framework, candidates=(adtn.LowRank(), adtn.MPO()))
    with pytest.raises(CompressError, match=r"Got a budget of [\d,]+ parameters") as caught:
        adtn.compress(net(framework), config, budget=budget, data=data)
    least = least_of(caught, "parameters")
    assert f"Budget(params={least})" in str(caught.value)
    report = adtn.compress(net(framework), config, budget=Budget(params=least), data=data)
    assert report.after.params == least


def test_without_data_no_size_is_promised_that_leaves_every_weight_dense(framework: str) -> None:
    config = config_of(framework, candidates=(adtn.LowRank(),), largest_error=0.0)
    with pytest.raises(CompressError, match="no data.* at most 0.0; no layer becomes smaller.*Pass data="):
        adtn.compress(net(framework), config, budget=Budget(params=1))


def language_model() -> Any:
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def test_the_least_file_of_a_folder_counts_what_it_says_of_other_files(tmp_path: Path) -> None:
    language_model().save_pretrained(tmp_path / "dense")
    with pytest.raises(CompressError, match="Got a budget of 1,000 bytes") as caught:
        run_folder(tmp_path / "dense", replace(FIRST, budget=Budget(bytes=1000)), tmp_path / "small")
    least = least_of(caught, "bytes")
    report = run_folder(tmp_path / "dense", replace(FIRST, budget=Budget(bytes=least)), tmp_path / "small")
    assert (tmp_path / "small/state.safetensors").stat().st_size == report.file_bytes == least


@pytest.mark.parametrize("budget", [None, Budget(bytes=60_000), Budget(bytes_ratio=2.0)])
def test_the_file_of_a_folder_keeps_the_budget_of_the_report(tmp_path: Path, budget: Budget | None) -> None:
    language_model().save_pretrained(tmp_path / "dense")
    for name in ("a", "b", "c"):  # their digests are part of the file
        (tmp_path / f"dense/{name}.json").write_text("{}")
    report = run_folder(tmp_path / "dense", replace(FIRST, budget=budget), tmp_path / "small")
    assert report.config.budget is not None and report.file_bytes is not None
    dense = (tmp_path / "dense/model.safetensors").stat().st_size
    assert report.file_bytes <= report.config.budget.most(dense)
    assert report.file_bytes == (tmp_path / "small/state.safetensors").stat().st_size
    assert budget in (None, report.config.budget)
