"""Compression as users call it: budgets, dtypes, repeated calls, and what the report says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Config
from adtn.compression import model_of, run_folder
from adtn.compression._state import metadata_of_state
from adtn.errors import CompressError
from adtn.precision import round_symmetric

from models import batches, net, texts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
layers = pytest.importorskip("adtn_backends.torch.layers")

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
QUICK: dict[str, Any] = {"recipe": "closed-form", "smallest": 8}


def generated(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, layers.GeneratedWeight)]


def language_model(dtype: Any = torch.float32, kind: str = "gpt2") -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=16,
        )
        return transformers.LlamaForCausalLM(config).eval().to(dtype)
    config = transformers.GPT2Config(
        vocab_size=32, n_embd=32, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config).eval().to(dtype)


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=texts()[0]["input_ids"]).logits


@pytest.mark.parametrize("name", ["data", "validation", "test"])
def test_batches_that_can_be_read_only_once_are_refused(name: str) -> None:
    options = {"data": batches(), name: (batch for batch in batches())}
    with pytest.raises(CompressError, match=rf"Got {name}=.*read only once; pass a list"):
        adtn.compress(net(), Config(**QUICK), budget="4x", **options)


def test_sums_of_kronecker_products_are_chosen_within_a_budget() -> None:
    model, data = net(), batches()
    config = Config(**QUICK, targets=["4"], candidates=(adtn.KroneckerSum(),))
    with torch.no_grad():  # a weight that is one exactly
        model[4].weight.copy_(torch.kron(torch.randn(8, 16), torch.randn(4, 8)))
    want = model(data[0][0])
    report = adtn.compress(model, config, budget="2x", data=data)
    assert report.layers[0].topology.startswith("KroneckerSum")
    assert report.generators["4"].params["left"].shape[1:] == (8, 16)
    torch.testing.assert_close(model(data[0][0]), want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("baselines", [False, True])
def test_codes_are_not_decoded_where_a_slower_model_is_allowed(baselines: bool) -> None:
    model, data = net(), batches()
    config = Config(**QUICK, allow_slower=True)
    report = adtn.compress(model, config, budget="6x", data=data, test=data, baselines=baselines)
    coded = [weight for weight in generated(model) if weight.coded[0]]
    assert coded and all(weight.is_coded for weight in coded)
    assert report.after.resident_bytes == model_of(model, None).resident_bytes()


@pytest.mark.parametrize("detour", ["half", "bfloat16"])
def test_a_detour_through_half_precision_loses_no_digits(detour: str) -> None:
    random = adtn.Generator((64, 32), adtn.LowRank(bond=8), seed=0)
    weight = layers.GeneratedWeight(random.rounded(adtn.Precision("int4")))
    weight.decode_once()
    before = weight().clone()
    getattr(weight, detour)()
    assert torch.equal(weight.float()(), before)


def test_pretrained_models_that_are_compressed_twice_can_be_saved(tmp_path: Path) -> None:
    model = language_model()
    adtn.compress(model, Config(**QUICK, targets=["*.mlp.*"]), budget="1.5x", data=texts())
    adtn.compress(model, Config(**QUICK, targets=["*.attn.*"]), budget="1.2x", data=texts())
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(adtn.load_pretrained(tmp_path)), logits(model))


def test_a_failed_call_leaves_an_earlier_compression_as_it_was(tmp_path: Path) -> None:
    model = language_model()
    adtn.compress(model, Config(**QUICK, targets=["*.mlp.*"]), budget="1.5x", data=texts())
    with pytest.raises(CompressError, match="Allow at least"):
        adtn.compress(model, Config(**QUICK, targets=["*.attn.*"]), budget="1KB", data=texts())
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(adtn.load_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_folders_in_half_precision_stay_so(kind: str, tmp_path: Path) -> None:
    dense, out = tmp_path / "dense", tmp_path / "small"
    language_model(torch.bfloat16, kind).save_pretrained(dense)
    report = run_folder(dense, Config(**QUICK, rest="same"), out, data=texts())
    model = adtn.load_pretrained(out)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model_of(model, None).resident_bytes() == report.after.resident_bytes
    again = transformers.AutoModelForCausalLM.from_pretrained(dense, dtype="auto")
    assert torch.equal(logits(model), logits(adtn.load_model(again, out)))
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(model), logits(adtn.load_pretrained(tmp_path / "again")))


def test_the_report_of_a_folder_has_the_size_of_its_file(tmp_path: Path) -> None:
    dense, out = tmp_path / "dense", tmp_path / "small"
    language_model().save_pretrained(dense)
    budget = adtn.Budget.parse("3x")
    report = run_folder(dense, Config(**QUICK, budget=budget), out, data=texts())
    size = (out / "state.safetensors").stat().st_size
    assert report.file_bytes == size == json.loads((out / "report.json").read_text())["file_bytes"]
    assert size <= budget.most((dense / "model.safetensors").stat().st_size)


def test_the_size_is_that_after_the_training() -> None:
    class Scaled(torch.nn.Sequential):
        def forward(self, x: Any) -> Any:
            return super().forward(900 * x)

    torch.manual_seed(0)
    linear, norm = torch.nn.Linear(64, 128), torch.nn.BatchNorm1d(128)
    norm.running_var.fill_(64_000.0)  # some go beyond the range of float16
    model = Scaled(linear, norm, torch.nn.ReLU(), torch.nn.Linear(128, 10))
    data = [(torch.randn(32, 64), torch.randint(0, 10, (32,))) for _ in range(3)]
    for least, budget in ((True, adtn.Budget(bytes=9_900)), (False, adtn.Budget(bytes=10_400))):
        # without entropy codes, the layer nearly fills the budget
        integers = tuple(p for p in Config().precisions if not p.is_coded)
        config = Config(targets=["0"], rest="float16", tune_steps=20, precisions=integers)
        if least:
            with pytest.raises(CompressError, match="too large for float16 were trained"):
                adtn.compress(model, config, budget=budget, data=data)
        else:
            report = adtn.compress(model, config, budget=budget, data=data)
            metadata = metadata_of_state(report.generators, report.rest)
            assert report.file_bytes == len(model_of(model, None).content(metadata, report.rest))


@pytest.mark.parametrize("rest", ["same", "float16", "int8"])
def test_views_of_the_same_memory_are_stored(rest: Any, tmp_path: Path) -> None:
    def make() -> Any:
        model = net()
        model.register_buffer("table", torch.arange(512.0).reshape(16, 32))
        model.register_buffer("rows", model.table[2:9])
        model.register_buffer("turned", model.table[2:9].T)
        return model

    model = make()
    report = adtn.compress(model, Config(**QUICK, targets=["4"], rest=rest), budget="1.5x", data=batches())
    content = model_of(model, None).content(metadata_of_state(report.generators, report.rest), report.rest)
    assert len(content) == report.file_bytes
    (tmp_path / "state").write_bytes(content)
    again = model_of(make(), None)
    again.install(report.generators)
    again.load(tmp_path / "state")
    assert again.digest() == model_of(model, None).digest()


def test_states_that_no_file_holds_are_named() -> None:
    class Extra(torch.nn.Linear):
        def get_extra_state(self) -> Any:
            return {"version": 1}

        def set_extra_state(self, state: Any) -> None:
            assert state == {"version": 1}

    model = torch.nn.Sequential(Extra(8, 8), torch.nn.Linear(8, 64), torch.nn.Linear(64, 3))
    data = [(torch.randn(16, 8), torch.arange(16) % 3)]
    with pytest.raises(CompressError, match="Got '0._extra_state' of type dict"):
        adtn.compress(model, budget="2x", data=data)
    report = adtn.compress(model, Config(topology=adtn.LowRank(bond=2), tune_steps=2, targets=["1"]), data=data)
    assert list(report.generators) == ["1"]


def test_no_gradients_are_left() -> None:
    model = net()
    adtn.compress(model, Config(tune_steps=2), budget="3x", data=batches())
    assert all(p.grad is None for p in model.parameters())


def test_codes_of_flax_are_not_decoded_either_after_baselines() -> None:
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(16, 256, rngs=rngs), nnx.relu, nnx.Linear(256, 8, rngs=rngs))
    data = [(np.ones((8, 16), np.float32), np.arange(8) % 3)]
    config = Config(**QUICK, allow_slower=True)
    report = adtn.compress(model, config, budget="3x", data=data, test=data, baselines=True)
    assert report.after.resident_bytes == model_of(model, None).resident_bytes()
    assert report.after.resident_bytes < (report.before.resident_bytes or 0) / 2


@pytest.mark.parametrize("options", [{"topology": adtn.LowRank(bond=2)}, {"budget": adtn.Budget.parse("4x")}])
def test_the_report_says_how_large_the_file_is(options: Any, tmp_path: Path) -> None:
    config = Config(**QUICK, rest="int8", targets=["4"], **options)
    report = run_folder(net, config, tmp_path, data=batches())
    size = (tmp_path / "state.safetensors").stat().st_size
    assert report.file_bytes == size
    assert f"file of the state {size:,} bytes" in str(report)
    assert f"{report.before.bytes / size:.1f}x" in str(report).splitlines()[-2 - len(report.summary())]


def test_an_adapter_leaves_the_dense_weights_as_they_are() -> None:
    with pytest.raises(CompressError, match="Got rest='int8' with mode='adapter'"):
        Config(mode="adapter", rest="int8")


def test_compressed_folders_are_refused_before_any_work(tmp_path: Path) -> None:
    model = language_model()
    adtn.compress(model, Config(**QUICK, targets=["*.mlp.*"]), budget="1.5x")
    model.save_pretrained(tmp_path / "first")
    with pytest.raises(CompressError, match="compressed already"):
        run_folder(tmp_path / "first", Config(**QUICK), tmp_path / "second", data=texts())
    assert not (tmp_path / "second" / "state.safetensors").exists()


def test_what_rounding_of_everything_else_loses_is_part_of_a_loss_of_accuracy() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(64, 16), torch.nn.Flatten(), torch.nn.Linear(64, 32))
    data = [(torch.randint(0, 64, (16, 4)), torch.arange(16) % 32)]
    rounded: list[bool] = []

    def score(model: Any) -> float:
        x = model[0].weight.detach().numpy()
        rounded.append(np.array_equal(round_symmetric(x).decode(), x))
        return 1.0

    config = Config(**QUICK, targets=["2"], rest="int8", budget=adtn.Budget(accuracy_loss=1))
    adtn.compress(model, config, data=data, score=score)
    assert rounded[0] is False and all(rounded[1:]) and len(rounded) > 2
