"""Hugging Face folders: compressed with one call, and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import adtn
import pytest
from adtn.compression import Config, run_folder
from adtn.errors import CompressError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
layers = pytest.importorskip("adtn_backends.torch.layers")

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

IDS = torch.arange(24).reshape(2, 12) % 32


def folder_of(kind: str, path: Path) -> Path:
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=True,
        )
        model = transformers.LlamaForCausalLM(config)
    else:
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1
            )
        )
    model.save_pretrained(path)
    (path / "tokenizer.json").write_text("{}")
    return path


@pytest.mark.parametrize(("kind", "targets"), [("llama", ["*_proj"]), ("gpt2", ["Conv1D", "transformer.wte"])])
def test_folder_to_folder_and_back(kind: str, targets: list[str], tmp_path: Path) -> None:
    source, out = folder_of(kind, tmp_path / "dense"), tmp_path / "small"
    data = [{"input_ids": IDS, "labels": IDS}]
    config = Config(targets=targets, topology=adtn.TTN(bond=2), steps=3, tune_steps=3)
    report = run_folder(source, config, out, data=data, test=data)
    assert report.after.params < report.before.params
    assert report.after.loss is not None
    assert (out / "tokenizer.json").exists()
    assert not list(out.glob("model*.safetensors"))
    model = adtn.load_pretrained(out)
    y = model(input_ids=IDS, labels=IDS)
    assert float(y.loss.detach()) == pytest.approx(report.after.loss, rel=1e-4)
    assert sum(p.numel() for p in model.parameters()) == report.after.params
    again = adtn.load_pretrained(str(out))
    torch.testing.assert_close(again(input_ids=IDS).logits, y.logits)
    assert again.generate(IDS[:1, :4], max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 7)


def test_accuracy_is_of_the_next_token(tmp_path: Path) -> None:
    from adtn_backends.torch._model import TorchModel
    from adtn_backends.torch.huggingface import pretrained

    model = pretrained(folder_of("llama", tmp_path))
    guess = model(input_ids=IDS).logits.argmax(-1)
    labels = IDS.clone()
    labels[:, :6] = -100
    right = float((guess[:, 5:-1] == IDS[:, 6:]).float().mean())
    score = TorchModel(model, None).accuracy([{"input_ids": IDS, "labels": labels}])
    assert score == pytest.approx(100 * right)
    loss = TorchModel(model, None).loss_on([{"input_ids": IDS, "labels": labels}], None)
    assert loss == pytest.approx(float(model(input_ids=IDS, labels=labels).loss.detach()), rel=1e-5)


def test_ties_are_declared_again_when_the_dense_layers_are_back(tmp_path: Path) -> None:
    from adtn_backends.torch._model import TorchModel
    from adtn_backends.torch.huggingface import pretrained

    model: Any = pretrained(folder_of("gpt2", tmp_path))
    declared = type(model)._tied_weights_keys
    expanded = getattr(model, "all_tied_weights_keys", None)
    adapter = TorchModel(model, None)
    adapter.install({"transformer.wte": adtn.Generator((32, 16), adtn.TTN(bond=2))})
    assert declared and not model._tied_weights_keys, "the module of the table ties it"
    adapter.restore()
    assert model._tied_weights_keys == declared
    assert getattr(model, "all_tied_weights_keys", None) == expanded


def test_folders_that_are_not_models_are_refused(tmp_path: Path) -> None:
    source = folder_of("llama", tmp_path / "dense")
    with pytest.raises(CompressError, match="pass another folder"):
        run_folder(source, Config(), source)
    with pytest.raises(CompressError, match="holds no generators"):
        adtn.load_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["Nothing"]}))
    with pytest.raises(CompressError, match="expected a model class"):
        run_folder(source, Config(), tmp_path / "out")
    with pytest.raises(CompressError, match="expected a Hugging Face folder"):
        run_folder(tmp_path / "nowhere", Config(), tmp_path / "out")


def tiny(kind: str) -> tuple[Any, dict[str, Any]]:
    """Make a small model of another architecture, and a batch for it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"input_ids": IDS, "labels": IDS}
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=32, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8, decoder_start_token_id=0
        )
        return transformers.T5ForConditionalGeneration(config), text
    if kind == "gemma":
        config = transformers.GemmaConfig(vocab_size=32, head_dim=8, num_key_value_heads=1, **sizes)
        return transformers.GemmaForCausalLM(config), text
    if kind == "mixtral":
        config = transformers.MixtralConfig(vocab_size=32, num_key_value_heads=1, num_local_experts=2, **sizes)
        return transformers.MixtralForCausalLM(config), text
    words = {"vocab_size": 32, "eos_token_id": 31, "bos_token_id": 30, "pad_token_id": 0, **sizes}
    images = {"image_size": 8, "patch_size": 4, **sizes}
    config = transformers.CLIPConfig(text_config=words, vision_config=images, projection_dim=8)
    return transformers.CLIPModel(config), {
        "input_ids": IDS,
        "pixel_values": torch.randn(2, 3, 8, 8),
        "return_loss": True,
    }


@pytest.mark.parametrize(
    ("kind", "targets", "want"),
    [
        ("t5", ["Embedding", "*.wo"], "shared"),  # the decoder makes its inputs from the labels
        ("gemma", ["*embed_tokens"], "model.embed_tokens"),  # tied, and scaled by a special class
        ("mixtral", ["MixtralExperts"], "model.layers.0.mlp.experts.gate_up_proj"),  # experts in one tensor
        ("clip", ["*.fc1"], "vision_model.encoder.layers.0.mlp.fc1"),  # no labels, but its own loss
    ],
)
def test_models_of_many_kinds(kind: str, targets: list[str], want: str, tmp_path: Path) -> None:
    model, batch = tiny(kind)
    model.save_pretrained(tmp_path / "dense")
    config = Config(targets=targets, topology=adtn.MPO(bond=2), steps=2, tune_steps=2, smallest=64)
    report = run_folder(tmp_path / "dense", config, tmp_path / "small", data=[batch])
    assert want in report.generators
    assert len(report.losses) == 2
    again = adtn.load_pretrained(tmp_path / "small").eval()
    small = sum(p.numel() for p in again.parameters())
    assert small == report.after.params < report.before.params
    dense = layers.to_dense(again)
    assert type(dense.get_submodule(report.layers[0].name)) is type(model.get_submodule(report.layers[0].name))
    torch.testing.assert_close(dense(**batch).loss, again(**batch).loss)


def test_batches_without_labels_say_what_is_missing() -> None:
    model, _ = tiny("gemma")
    config = Config(targets=["*.q_proj"], topology=adtn.MPO(bond=2), steps=1, tune_steps=1, smallest=64)
    with pytest.raises(CompressError, match=r"Got batches of \['input_ids'\]; expected 'labels'"):
        adtn.compress(model, config, data=[{"input_ids": IDS}])
    plain = torch.nn.Sequential(torch.nn.Linear(16, 16))
    for batch in (torch.ones(4, 16), (torch.ones(4, 16),)):
        with pytest.raises(CompressError, match="Got batches without labels"):
            adtn.compress(plain, Config(topology=adtn.MPO(bond=2), steps=1, tune_steps=1), data=[batch])
