"""The folder of a compressed model: every array once, codes as codes, and the rest in half precision on request."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Config, Precision
from adtn._files import header_text, metadata_of, sealed
from adtn.compression import _local, read_generators, run_folder
from adtn.compression._folder import _write
from adtn.compression._model import model_of
from adtn.compression._structures import structures_from_text, structures_to_text
from adtn.errors import CompressError, FileFormatError, ModelFileError
from safetensors.numpy import load as load_plain
from safetensors.numpy import save as save_plain

torch = pytest.importorskip("torch")

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
QUICK = Config(topology=adtn.TTN(bond=4), smallest=8, steps=3, targets=["0"])
JAX = Config(topology=adtn.TTN(bond=4), smallest=8, steps=3, targets=["layers.0"])


def torch_net() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(48, 32), torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 3))


def jax_net() -> Any:
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(48, 32, rngs=rngs), nnx.BatchNorm(32, rngs=rngs), nnx.Linear(32, 3, rngs=rngs))


def outputs(model: Any) -> np.ndarray:
    x = np.linspace(-1, 1, 96, dtype=np.float32).reshape(2, 48)
    if isinstance(model, torch.nn.Module):
        return model.eval()(torch.from_numpy(x)).detach().numpy()
    model.eval()
    return np.asarray(model(x))


def round_model(net: Any, config: Config, folder: Path, precision: Precision) -> Any:
    """Compress a model, round its generators, and write the folder again; return the model."""
    model = net()
    report = adtn.compress(model, config)
    small = net()
    adapter = model_of(small, None)
    adapter.install({name: gen.rounded(precision) for name, gen in report.generators.items()})
    report.generators.update(adapter.generators())
    folder.mkdir(exist_ok=True)
    _write(folder, small, report, None)
    return small


@pytest.mark.parametrize(("net", "config"), [(torch_net, QUICK), (jax_net, JAX)], ids=["torch", "jax"])
def test_a_folder_caches_until_it_has_a_result(
    net: Any, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[str] = []
    real = _local.solve

    def solve(task: Any) -> Any:
        solved.append(task.name)
        return real(task)

    def stop(line: str) -> None:
        if line.startswith("step 2"):
            raise KeyboardInterrupt

    monkeypatch.setattr(_local, "solve", solve)
    config = replace(config, tune_steps=4)
    data = [(np.ones((4, 48), np.float32), np.arange(4) % 3)]
    out, whole = tmp_path / "out", tmp_path / "whole"
    told: list[str] = []
    want = run_folder(net, config, whole, data=data)
    solved.clear()
    with pytest.raises(KeyboardInterrupt):
        run_folder(net, config, out, data=data, progress=stop)
    (out / "layers/notes.txt").write_text("of the user")
    (out / "layers/training-0123456789abcdef").write_text("of another call")
    assert len(list((out / "layers").glob("*.safetensors"))) == 1
    got = run_folder(net, config, out, data=data, progress=told.append)
    assert len(solved) == 1, "the cached layer is found"
    steps = [line.split(":")[0] for line in told if line.startswith("step")]
    assert steps == [f"step {n} of 4" for n in (2, 3, 4)]
    assert got.losses == want.losses
    assert [p.name for p in (out / "layers").iterdir()] == ["notes.txt"]
    assert not (whole / "layers").exists()
    again = run_folder(net, config, whole, data=data)
    assert len(solved) == 2, "it is computed again"
    assert again.losses == want.losses
    assert (whole / "state.safetensors").read_bytes() == (out / "state.safetensors").read_bytes()


@pytest.mark.parametrize(("net", "config"), [(torch_net, QUICK), (jax_net, JAX)], ids=["torch", "jax"])
@pytest.mark.parametrize("precision", [Precision("int4", 16), Precision("int3"), Precision("bfloat16")], ids=str)
def test_codes_are_stored_once_and_exactly(net: Any, config: Config, precision: Precision, tmp_path: Path) -> None:
    small = round_model(net, config, tmp_path, precision)
    generator = model_of(small, None)
    back = adtn.load_model(net(), tmp_path)
    assert outputs(back).tobytes() == outputs(small).tobytes()
    content = (tmp_path / "state.safetensors").read_bytes()
    tensors = load_plain(content)
    coded = {name: x for name, x in tensors.items() if "codes_" in name}
    assert coded and all(x.dtype == np.uint8 for x in coded.values())
    nbytes = sum(x.nbytes for x in tensors.values())
    assert nbytes == generator.sizes()[1] + sum(
        x.nbytes
        for name, x in tensors.items()
        if any(part in name for part in ("running_", "mean", "var", "num_batches"))
    )
    assert {p.name for p in tmp_path.iterdir()} - {".lock"} == {"state.safetensors", "report.json", "report.html"}
    assert len(content) - nbytes < 3000, "the header"
    for name, read in read_generators(tmp_path).items():
        assert read.precision == precision and len(read.codes) == len(coded)
        for core, x in read.codes.items():
            assert x.data.tobytes() == coded[f"{name}.generated.codes_{core}"].tobytes()


@pytest.mark.parametrize(("net", "config"), [(torch_net, QUICK), (jax_net, JAX)], ids=["torch", "jax"])
@pytest.mark.parametrize("rest", ["float16", "bfloat16"])
def test_the_rest_is_stored_in_half_precision(net: Any, config: Config, rest: Any, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    run_folder(net, config, whole)
    report = run_folder(net, replace(config, rest=rest), half)
    for name, read in read_generators(half).items():
        want = report.generators[name]
        assert read.topology == want.topology
        assert all(np.array_equal(x, read.params[core]) for core, x in want.params.items())
    kinds = kinds_of(half / "state.safetensors")
    assert kinds_of(whole / "state.safetensors").keys() == kinds.keys()
    for name, kind in kinds.items():
        expected = (
            "I64" if "num_batches" in name else "F32" if "generated" in name else {"float16": "F16"}.get(rest, "BF16")
        )
        assert kind == expected, name
    np.testing.assert_allclose(outputs(adtn.load_model(net(), half)), outputs(adtn.load_model(net(), whole)), atol=0.02)
    assert (half / "state.safetensors").stat().st_size < (whole / "state.safetensors").stat().st_size


def kinds_of(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    entries = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: entry["dtype"] for name, entry in entries.items() if name != "__metadata__"}


def test_tensors_that_float16_cannot_hold_stay(tmp_path: Path) -> None:
    def net() -> Any:
        model = torch_net()
        with torch.no_grad():
            model[2].bias[0] = 1e6
        return model

    run_folder(net, replace(QUICK, rest="float16"), tmp_path)
    kinds = kinds_of(tmp_path / "state.safetensors")
    assert kinds["2.bias"] == "F32" and kinds["2.weight"] == "F16"
    assert adtn.load_model(torch_net(), tmp_path)[2].bias[0].item() == 1e6


def test_the_rest_has_no_4_bits() -> None:
    with pytest.raises(
        CompressError, match="Got rest='int4'; expected 'choose', 'same', 'float16', 'bfloat16' or 'int8'"
    ):
        replace(QUICK, rest="int4")  # type: ignore[arg-type]


def test_structures_are_a_short_string() -> None:
    generators = {f"blocks.{n}": adtn.Generator((64, 64), adtn.TTN(bond=4), scale=1 + n) for n in range(48)}
    generators["rounded"] = generators["blocks.0"].rounded(Precision("int4", 16))
    text = structures_to_text(generators)
    assert len(text) < 48 * 40
    back = structures_from_text(text)
    assert back.keys() == generators.keys() and back["rounded"].precision == Precision("int4", 16)
    for name, gen in generators.items():
        assert (back[name].topology, back[name].layout, back[name].scale) == (gen.topology, gen.layout, gen.scale)


@pytest.mark.parametrize("text", [None, "", "@@", "AAAA", "eJw=", structures_to_text({})[:-4]])
def test_structures_that_are_none(text: object) -> None:
    with pytest.raises(FileFormatError, match="does not describe generators"):
        structures_from_text(text)


def test_a_state_with_other_structures_is_refused(tmp_path: Path) -> None:
    run_folder(torch_net, QUICK, tmp_path)
    state = tmp_path / "state.safetensors"
    tensors = load_plain(state.read_bytes())
    kind = json.loads(metadata_of(state.read_bytes())["adtn"])["kind"]

    def forged(structures: Any) -> None:
        header = header_text(kind, 3, structures=structures, beside={})
        state.write_bytes(sealed(save_plain(tensors, {"adtn": header})))

    forged("nothing")
    with pytest.raises(ModelFileError, match="does not describe generators"):
        adtn.load_model(torch_net(), tmp_path)
    forged(structures_to_text({"0": adtn.Generator((32, 48), adtn.MPO(bond=2))}))
    with pytest.raises(ModelFileError, match="Cannot load"):
        adtn.load_model(torch_net(), tmp_path)
    model = torch_net()
    forged(structures_to_text({"0": adtn.Generator((32, 40), adtn.MPO(bond=2))}))
    with pytest.raises(CompressError, match="shape"):
        adtn.load_model(model, tmp_path)
    assert type(model[0]) is torch.nn.Linear


def test_an_older_result_is_replaced(tmp_path: Path) -> None:
    from test_trust_files import as_format_2

    report = run_folder(torch_net, QUICK, tmp_path)
    want = outputs(adtn.load_model(torch_net(), tmp_path))
    as_format_2(tmp_path / "state.safetensors", report.generators)
    assert np.array_equal(outputs(adtn.load_model(torch_net(), tmp_path)), want)
    (tmp_path / "generators" / "mine.txt").write_text("mine")
    run_folder(torch_net, QUICK, tmp_path)
    assert [p.name for p in (tmp_path / "generators").iterdir()] == ["mine.txt"]
    assert np.array_equal(outputs(adtn.load_model(torch_net(), tmp_path)), want)


def test_hugging_face_models_hold_codes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "dense")
    report = adtn.compress(
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "dense"),
        Config(targets=["Conv1D"], topology=adtn.MPO(bond=4), steps=2),
    )
    small = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "dense").eval()
    adapter = model_of(small, None)
    adapter.install({name: gen.rounded(Precision("int4", 32)) for name, gen in report.generators.items()})
    small.save_pretrained(tmp_path / "saved")
    report.generators.update(adapter.generators())
    (tmp_path / "small").mkdir()
    _write(tmp_path / "small", small, report, tmp_path / "dense")
    tokens = torch.arange(8)[None]
    for folder in ("saved", "small"):
        back = adtn.load_pretrained(tmp_path / folder)
        assert torch.equal(back(tokens).logits, small(tokens).logits)
        found = model_of(back, None)
        assert any("int4/32" in repr(module) for module in found.model.modules())
