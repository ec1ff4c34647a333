"""Hugging Face folders: in, out, and back with one call."""

from __future__ import annotations

import json
from pathlib import Path

import adtn
import pytest
from adtn._errors import CompressError
from adtn.compress import Config, run_folder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
layers = pytest.importorskip("adtn_backends.torch_layers")

IDS = torch.arange(24).reshape(2, 12) % 32


def folder_of(kind: str, path: Path) -> Path:
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
        )  # fmt: skip
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
    from adtn_backends.huggingface import pretrained
    from adtn_backends.torch_model import TorchModel

    model = pretrained(folder_of("llama", tmp_path))
    guess = model(input_ids=IDS).logits.argmax(-1)
    labels = IDS.clone()
    labels[:, :6] = -100
    right = float((guess[:, 5:-1] == IDS[:, 6:]).float().mean())
    score = TorchModel(model, None).score([{"input_ids": IDS, "labels": labels}])
    assert score == pytest.approx(100 * right)
    loss = TorchModel(model, None).loss_on([{"input_ids": IDS, "labels": labels}], None)
    assert loss == pytest.approx(float(model(input_ids=IDS, labels=labels).loss.detach()), rel=1e-5)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    source = folder_of("llama", tmp_path / "dense")
    with pytest.raises(CompressError, match="take another one"):
        run_folder(source, Config(), source)
    with pytest.raises(CompressError, match="holds no generators"):
        adtn.load_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["Nothing"]}))
    with pytest.raises(CompressError, match="knows no such model"):
        run_folder(source, Config(), tmp_path / "out")
    with pytest.raises(CompressError, match="expected a Hugging Face folder"):
        run_folder(tmp_path / "nowhere", Config(), tmp_path / "out")
