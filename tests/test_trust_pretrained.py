"""Compressed transformers models can be saved by ``save_pretrained`` and a Trainer, and loaded with one call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import adtn
import pytest
from adtn.errors import CompressError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
layers = pytest.importorskip("adtn_backends.torch.layers")

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

SMALL = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2}


def gpt2() -> Any:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, **SMALL)
    return transformers.GPT2LMHeadModel(config)


def llama(tied: bool, **options: Any) -> Any:
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        **SMALL,
        **options,
    )
    return transformers.AutoModelForCausalLM.from_config(config)  # in the dtype of the config


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    return transformers.BertForSequenceClassification(config)


MODELS = {
    "gpt2, tied": gpt2,
    "llama": lambda: llama(False),
    "llama, tied": lambda: llama(True),
    "llama, tied, bfloat16": lambda: llama(True, dtype=torch.bfloat16),
    "bert": bert,
}


def compressed(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    settings = {"topology": adtn.TTN(bond=2), "steps": 2, "recipe": "reconstruct"} | options
    adtn.compress(model, adtn.Config(**settings))
    return model


def ids() -> Any:
    return torch.arange(16).reshape(2, 8)


def outputs(model: Any) -> Any:
    with torch.no_grad():
        return model(ids()).logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("base", [None, adtn.SeededBase(3)])
def test_a_model_comes_back(name: str, base: Any, tmp_path: Path) -> None:
    model = compressed(name, base=base)
    model.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    back = adtn.load_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(back) is type(model)
    assert torch.equal(outputs(back), outputs(model))
    assert {p.dtype for p in back.parameters()} == {p.dtype for p in model.parameters()}
    assert sum(p.numel() for p in back.parameters()) == sum(p.numel() for p in model.parameters())
    back.tie_weights()
    assert torch.equal(outputs(back), outputs(model))
    back.save_pretrained(tmp_path / "again")
    assert torch.equal(outputs(adtn.load_pretrained(tmp_path / "again")), outputs(model))
    torch.testing.assert_close(outputs(layers.to_dense(back)), outputs(model), rtol=1e-2, atol=1e-2)


def test_shards_are_read(tmp_path: Path) -> None:
    model = compressed("llama, tied")
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(outputs(adtn.load_pretrained(tmp_path)), outputs(model))


def test_a_dense_copy_is_an_ordinary_model(tmp_path: Path) -> None:
    model = compressed("llama, tied")
    dense = layers.to_dense(model)
    dense.save_pretrained(tmp_path)
    assert "adtn_generators" not in json.loads((tmp_path / "config.json").read_text())
    assert "adtn_generators" in model.config.to_dict()
    back = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(back), outputs(model), rtol=1e-4, atol=1e-4)


def test_missing_and_unexpected_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = compressed("llama, tied")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    some = next(name for name in state if "generated" in name)
    for changed in ({k: v for k, v in state.items() if k != some}, state | {"other": torch.zeros(2)}):
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(CompressError, match="do not match"):
            adtn.load_pretrained(tmp_path)
    save_file(state | {some: torch.zeros(7)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CompressError, match="Cannot load the compressed model"):
        adtn.load_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    for broken in ({}, [], "x", {"lm_head": {"topology": {"name": "nothing"}}}, {"elsewhere": 3}):
        (tmp_path / "config.json").write_text(json.dumps(config | {"adtn_generators": broken}))
        with pytest.raises(CompressError):
            adtn.load_pretrained(tmp_path)


def test_a_failed_compression_leaves_the_configuration(tmp_path: Path) -> None:
    model = llama(True)

    def lost(model: Any, batch: Any) -> Any:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        adtn.compress(model, adtn.Config(topology=adtn.TTN(bond=2), steps=1), data=[(ids(), ids())], loss=lost)
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    assert "adtn_generators" not in json.loads((tmp_path / "config.json").read_text())
