"""Generated adapters in peft, and LoRA on compressed models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import adtn
import pytest
from adtn.errors import CompressError

from models import net

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
layers = pytest.importorskip("adtn_backends.torch.peft")

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
nn = torch.nn

X = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(3))
GENERATED = {"topology": {"name": "ttn", "bond": 2}}


def wrapped(**options: Any) -> Any:
    config = layers.GeneratedLoraConfig(target_modules=["0", "4"], generated=GENERATED, **options)
    return peft.get_peft_model(net().eval(), config)


def moved(model: Any, seed: int = 0) -> Any:
    """Move the parameters of adapters away from zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_generated" in name and p.requires_grad:
                p += 0.3 * torch.randn_like(p)
    return model


def test_an_adapter_starts_at_zero_and_only_it_is_trained() -> None:
    model = wrapped()
    torch.testing.assert_close(model(X), net().eval()(X))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_generated.default." in n for n in trained)
    model(X).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_adapters_are_saved_and_loaded_alone(tmp_path: Path) -> None:
    model = moved(wrapped())
    y = model(X)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 10_000
    config = layers.GeneratedLoraConfig.from_folder(tmp_path)
    other = peft.PeftModel.from_pretrained(net().eval(), tmp_path, config=config)
    torch.testing.assert_close(other(X), y)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CompressError, match="adapter of type LORA"):
        layers.GeneratedLoraConfig.from_folder(tmp_path)


def test_adapters_are_switched_merged_and_unmerged() -> None:
    model = moved(wrapped())
    first = model(X)
    model.add_adapter("other", layers.GeneratedLoraConfig(target_modules=["4"], generated=GENERATED))
    model.set_adapter("other")
    moved(model, 1)
    second = model(X)
    assert not torch.allclose(first, second)
    model.set_adapter("default")
    torch.testing.assert_close(model(X), first)
    dense = model.base_model.model[4].base_layer.weight.detach().clone()
    model.merge_adapter()
    torch.testing.assert_close(model(X), first, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(model.base_model.model[4].base_layer.weight, dense)
    with model.disable_adapter():
        torch.testing.assert_close(model(X), net().eval()(X))
    merged = model.merge_and_unload()
    assert type(merged[4]) is nn.Linear
    torch.testing.assert_close(merged(X), first, rtol=1e-4, atol=1e-4)


def test_a_safe_merge_refuses_what_is_not_finite() -> None:
    model = moved(wrapped())
    y = model(X)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(X), y, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    broken = next(p for name, p in model.named_parameters() if "lora_generated" in name and p.requires_grad)
    with torch.no_grad():
        broken.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_adapter(safe_merge=True)
    model.merge_adapter()


def test_merged_adapters_are_saved_loaded_and_trained_as_if_they_were_not() -> None:
    model, other = moved(wrapped()), wrapped()
    want = model(X)
    model.merge_adapter()
    other.load_state_dict(model.state_dict())  # saved merged
    torch.testing.assert_close(other(X), want, rtol=1e-4, atol=1e-4)
    names = [n for n, p in other.named_parameters() if p.requires_grad]
    grads = [
        torch.autograd.grad(m(X).square().sum(), [p for p in m.parameters() if p.requires_grad]) for m in (model, other)
    ]
    for name, a, b in zip(names, *grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3, msg=name)
    model.load_state_dict({k: 0.5 * v for k, v in other.state_dict().items()})  # loaded while merged
    other.load_state_dict({k: 0.5 * v for k, v in other.state_dict().items()})
    torch.testing.assert_close(model(X), other(X), rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    plain = model.merge_and_unload()
    y, state = plain(X), {k: v.clone() for k, v in plain.state_dict().items()}
    plain.load_state_dict(state)  # an ordinary model again
    torch.testing.assert_close(plain(X), y)


def test_invalid_calls_are_refused() -> None:
    with pytest.raises(adtn.errors.ADTNError, match="no topology|Got topology"):
        layers.GeneratedLoraConfig(target_modules=["4"], generated={"topology": "nothing"})


def test_lora_on_a_compressed_model(tmp_path: Path) -> None:
    model = net().eval()
    config = adtn.Config(targets=["4"], topology=adtn.TTN(bond=2), steps=3, recipe="reconstruct")
    adtn.compress(model, config)
    compressed = copy.deepcopy(model)
    y = model(X)
    lora = layers.on_compressed(peft.LoraConfig(target_modules=["4", "6"], r=2))
    wrapped = peft.get_peft_model(model, lora)
    torch.testing.assert_close(wrapped(X), y)
    trained = [n for n, p in wrapped.named_parameters() if p.requires_grad]
    assert all("lora_" in n for n in trained)
    assert {n.split(".lora")[0].rsplit(".", 1)[-1] for n in trained} == {"4", "6"}
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        (wrapped(X) - 1.0).square().mean().backward()
        optimizer.step()
    after = wrapped(X).detach()
    assert (after - 1.0).square().mean() < (y - 1.0).square().mean()
    with pytest.raises(CompressError, match="cannot be merged"):
        wrapped.merge_adapter()
    wrapped.save_pretrained(tmp_path)
    config = layers.on_compressed(peft.LoraConfig.from_pretrained(tmp_path))
    again = peft.PeftModel.from_pretrained(compressed, tmp_path, config=config)
    torch.testing.assert_close(again(X), after)
