"""Tensors whose entries share memory, as those that ``expand`` makes: they are compressed, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adtn
import pytest
from adtn import Config
from adtn.compression import model_of, run_folder
from adtn.errors import CompressError

torch = pytest.importorskip("torch")
nn = torch.nn

from adtn_backends.torch._overlap import fill, overlaps  # noqa: E402

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
QUICK: dict[str, Any] = {"targets": ["first"], "tune_steps": 10}


class Net(nn.Module):
    """A model with an expanded buffer and bias, an expanded weight, and windows over the same memory."""

    def __init__(self, value: float = 1.3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.constant = nn.Linear(64, 64), nn.Linear(64, 3), nn.Linear(64, 64, bias=False)
        self.first.bias = nn.Parameter((value * torch.ones(1)).expand(64))
        self.constant.weight = nn.Parameter((value * torch.ones(64, 1) / 64).expand(64, 64))
        self.register_buffer("factor", (value * torch.ones(1)).expand(64))
        self.register_buffer("table", (value * torch.randn(1, 32)).expand(16, 32))
        self.register_buffer("windows", (value * torch.randn(40)).unfold(0, 32, 1))

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.first(x)) * self.factor + self.constant(x)
        return self.second(x) + self.table.sum() + self.windows.sum()


def batches() -> list[Any]:
    rng = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 64, generator=rng), torch.randint(0, 3, (16,), generator=rng)) for _ in range(3)]


def state_of(model: Any) -> dict[str, Any]:
    return {name: (x.clone(), x.stride()) for name, x in model.state_dict().items()}


def same(model: Any, state: dict[str, Any]) -> bool:
    now = state_of(model)
    return set(now) == set(state) and all(torch.equal(now[k][0], x) and now[k][1] == s for k, (x, s) in state.items())


def test_overlaps_are_found_and_filled() -> None:
    whole, one = torch.arange(24.0).reshape(4, 6), torch.ones(1)
    for x in (whole, whole.T, whole[1:3, ::2], whole[:1].expand(1, 6), one[:0].expand(0), one[0], whole.to_sparse()):
        assert not overlaps(x)
    for x in (one.expand(4), whole[:, :1].expand(4, 7), torch.arange(40.0).unfold(0, 32, 1)):
        assert overlaps(x)
        wanted = x * 2
        fill(x, wanted)
        assert torch.equal(x, wanted) and overlaps(x)
    offset = torch.arange(3.0)
    fill(offset[1:2].expand(5), torch.full((5,), 7.0))
    assert offset.tolist() == [0.0, 7.0, 2.0]


@pytest.mark.parametrize("recipe", ["local-then-global", ("closed-form", "distill-local")])
@pytest.mark.parametrize("options", [{"budget": "3x"}, {"budget": adtn.Budget(accuracy_loss=100.0)}, {}])
def test_models_are_compressed_and_restored(recipe: Any, options: Any) -> None:
    model, data = Net(), batches()
    before = state_of(model)
    report = adtn.compress(model, Config(**QUICK, recipe=recipe), data=data, test=data, **options)
    assert list(report.generators) == ["first"]
    assert all(overlaps(model.state_dict()[name]) for name in ("factor", "table", "windows", "constant.weight"))
    assert model.constant.weight.requires_grad
    model = Net()

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adtn.compress(model, Config(**QUICK, recipe=recipe), data=data, test=data, loss=interrupted, **options)
    assert same(model, before)


@pytest.mark.parametrize("rest", ["same", "float16", "int8"])
def test_models_are_saved_and_loaded(rest: Any, tmp_path: Path) -> None:
    model, data = Net(), batches()
    report = adtn.compress(model, Config(**QUICK, rest=rest), budget="1.2x", data=data)
    adtn.save_model(model, tmp_path / "small", report)
    back = adtn.load_model(Net(value=0.7), tmp_path / "small")
    assert same(back, state_of(model))
    for x, y in data:
        assert torch.equal(back.eval()(x), model.eval()(x)), y


def test_training_of_them_continues_after_an_interruption(tmp_path: Path) -> None:
    data, ended = batches(), []

    def loss(model: Any, batch: Any) -> Any:
        ended.append(1)
        if len(ended) == stop:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    config, found = Config(targets=["first"], topology=adtn.LowRank(bond=4), steps=5, tune_steps=20), []
    for folder, stops in (("whole", (0,)), ("parts", (17, 0))):
        for stop in stops:
            ended.clear()
            model = Net()
            try:
                adtn.compress(model, config, data=data, loss=loss, folder=tmp_path / folder)
            except KeyboardInterrupt:
                assert stop
        found.append(state_of(model))
    assert same(model, found[0])


def test_weights_of_a_file_are_loaded(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: x.contiguous() for name, x in Net(0.7).state_dict().items()}, tmp_path / "dense.safetensors")
    made: list[Any] = []
    run_folder(
        lambda: made.append(Net()) or made[-1],
        Config(**QUICK),
        tmp_path / "out",
        weights=tmp_path / "dense.safetensors",
    )
    assert made[0].factor.tolist() == pytest.approx([0.7] * 64)


def test_a_state_of_another_shape_is_still_refused() -> None:
    adapter = model_of(Net(), None)
    state = adapter.state()
    state["factor"] = torch.ones(3)
    with pytest.raises((RuntimeError, CompressError), match="factor"):
        adapter.set_state(state)
