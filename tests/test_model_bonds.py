"""The bonds of all generators of a compressed model, from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import adtn
import pytest
from adtn.bondspace import ModelBonds, _bond
from adtn.cli import main
from adtn.compression import run_folder
from adtn.errors import ModelFileError, TopologyError
from safetensors.numpy import load

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")


def net() -> Any:
    torch.manual_seed(0)
    layers = {"fc": torch.nn.Linear(32, 32), "rnn": torch.nn.LSTM(16, 16), "attn": torch.nn.MultiheadAttention(16, 2)}
    return torch.nn.ModuleDict(layers)


def run(monkeypatch: Any, *arguments: Any) -> None:
    monkeypatch.setattr("sys.argv", ["adtn", "inspect", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)


def test_inspect_shows_the_bonds_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    folder = tmp_path / "small"
    config = adtn.Config(targets=["fc", "rnn*", "attn*"], topology=adtn.MPO(bond=3), recipe="closed-form")
    generators = run_folder(net, config, folder).generators
    assert {"rnn.weight_hh_l0", "attn.in_proj"} < set(generators)
    want = ModelBonds(generators)
    assert list(want.without) == ["attn.out_proj"]
    run(monkeypatch, folder, "--bonds", "--out", tmp_path / "b.json")
    text = capsys.readouterr().out
    assert str(want) in text and "no bonds: attn.out_proj" in text
    for name, bonds in want.items():
        assert f"{name}  {bonds.generator!r}" in text
    found = json.loads((tmp_path / "b.json").read_text())
    assert found == json.loads(want.to_json()) and found["without"] == want.without
    want.save(tmp_path / "b.html")
    page = (tmp_path / "b.html").read_text()
    assert page.count("<svg") == sum(map(len, want.values())) and page.count("<html") == page.count("</html>") == 1
    assert all(f"<h2>{name}</h2>" in page for name in want)
    run(monkeypatch, folder)
    assert len(capsys.readouterr().out.splitlines()) == len(generators)


def test_a_missing_core_is_named(tmp_path: Path) -> None:
    config = adtn.Config(targets=["fc"], topology=adtn.LowRank(bond=3), recipe="closed-form")
    run_folder(net, config, tmp_path / "old")
    file = tmp_path / "old/state.safetensors"
    tensors = load(file.read_bytes())
    del tensors["fc.generated.left"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adtn.compression._folder.read_whole", lambda *_: file.read_bytes())
        patch.setattr("adtn.compression._stored_generators.read_tensors", lambda *_, **__: tensors)
        with pytest.raises(ModelFileError, match="no core 'left' of 'fc'"):
            adtn.compression.read_generators(tmp_path / "old")


def test_a_weight_that_is_too_large_does_not_hide_the_others(monkeypatch: Any) -> None:
    def refuse(values: Any) -> float:
        raise TopologyError("too large")

    gens = {"a": adtn.Generator((16, 16), adtn.TT(bond=2)), "b": adtn.Generator((4, 4), adtn.Dense())}
    monkeypatch.setattr(_bond, "entropy", refuse)
    assert ModelBonds(gens).without == {"a": "too large", "b": "no bonds"}
    assert "too large: a" in str(ModelBonds(gens))
