"""Caches of decoders: rotations undone, parked prefixes that a model goes on with, stores, wrong models and damage."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import adtn
import torch
from adtn.errors import FileFormatError, KVCacheError, OutputWarning
from adtn.kv import KVCodec, Pair, Parked, PromptStore, kv_report
from adtn.kv._tables import FIRST
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

from adtn_backends.torch._decoder import HFDecoder
from kv_models import SIZES, llama, models, texts

LENGTH, CONTINUATION = 72, 16
MODELS = models()


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    """A decoder."""
    return MODELS[request.param]


@pytest.fixture(scope="module")
def codec() -> KVCodec:
    """A codec of the first model."""
    return KVCodec.calibrate(MODELS["llama"], texts(6, LENGTH), continuation=CONTINUATION, kl=1e-2, layers_per_basis=2)


def prefilled(model: Any, ids: np.ndarray) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.as_tensor(ids)[None], past_key_values=cache)
    return cache


def test_caches_come_back_from_their_states(model: Any) -> None:
    decoder = HFDecoder(model=model)
    ids = texts(1, LENGTH)[0]
    cache = decoder.prefill(ids)
    again = decoder.cache(decoder.states(cache), decoder.others(cache))
    assert again.get_seq_length() == LENGTH
    for own, other in zip(cache.layers, again.layers, strict=True):
        scale = float(own.keys.abs().max())
        assert type(own) is type(other)
        assert torch.allclose(own.keys, other.keys, atol=1e-6 * scale * 4)
        assert torch.equal(own.values, other.values)


def test_first_keys_without_rotation_depend_on_the_token_alone(model: Any) -> None:
    decoder = HFDecoder(model=model)
    if decoder.rotary is None:
        pytest.skip("no rotation in the first layer")
    ids = texts(1, LENGTH)[0]
    keys = decoder.states(decoder.prefill(ids)).k[:, 0]
    same = np.flatnonzero(ids == ids[0])
    assert len(same) > 2
    assert torch.allclose(keys[same], keys[same[:1]].expand(len(same), -1, -1), atol=1e-4 * float(keys.abs().max()))


def test_gradients_are_those_of_finite_differences() -> None:
    model = llama().double()
    decoder = HFDecoder(model=model)
    ids = texts(1, LENGTH)[0]
    prefix, rest = ids[:-CONTINUATION], ids[-CONTINUATION:]
    states = decoder.states(decoder.prefill(prefix))
    # the labels of this seed
    scores = decoder.log_probabilities(decoder.prefill(prefix), rest)
    drawn = np.random.default_rng(7).random((len(rest), 1), dtype=np.float32)
    cumulated = scores.exp().cumsum(-1)
    labels = torch.searchsorted(cumulated, torch.from_numpy(drawn) * cumulated[:, -1:])
    (found,) = decoder.gradients(decoder.prefill(prefix), rest, 1, 7)
    random = np.random.default_rng(0)
    for kind in ("k", "v"):
        direction = torch.from_numpy(random.normal(size=getattr(states, kind).shape)).float()

        def total(eps: float, kind: str = kind, direction: torch.Tensor = direction) -> float:
            moved = Pair(**{n: x + eps * direction * (n == kind) for n, x in (("k", states.k), ("v", states.v))})
            cache = decoder.cache(moved, {})
            return float(decoder.log_probabilities(cache, rest).gather(-1, labels).sum()) / CONTINUATION**0.5

        slope = (total(1e-3) - total(-1e-3)) / 2e-3
        expected = float((getattr(found, kind) * direction).sum())
        assert np.isclose(slope, expected, rtol=2e-2, atol=2e-3 * float(getattr(found, kind).norm()))


def test_a_model_goes_on_with_a_parked_prefix(model: Any) -> None:
    decoder = HFDecoder(model=model)
    own = KVCodec.calibrate(model, texts(6, LENGTH), continuation=CONTINUATION, kl=1e-2, layers_per_basis=2)
    ids = texts(1, LENGTH, seed=9)[0]
    cache = prefilled(model, ids[:-1])
    before = [layer.keys.clone() for layer in cache.layers]
    parked = own.encode(cache, ids[:-1], step=own.relative_finest)
    assert all(torch.equal(a, layer.keys) for a, layer in zip(before, cache.layers, strict=True))
    exact = decoder.log_probabilities(cache, ids[-1:])
    coded = decoder.log_probabilities(own.decode(parked), ids[-1:])
    assert float((exact.exp() * (exact - coded)).sum()) < 0.1
    out = model.generate(
        torch.as_tensor(ids)[None], past_key_values=own.decode(parked), max_new_tokens=5, do_sample=False
    )
    assert out.shape == (1, LENGTH + 5)


def test_a_cache_is_decoded_where_it_is_wanted(codec: KVCodec) -> None:
    parked = codec.encode(prefilled(MODELS["llama"], ids := texts(1, LENGTH)[0]), ids)
    assert {layer.keys.device.type for layer in codec.decode(parked).layers} == {"cpu"}
    there = codec.decode(parked, device="meta")
    assert {x.device.type for layer in there.layers for x in (layer.keys, layer.values)} == {"meta"}
    with pytest.raises(KVCacheError, match="device='moon'"):
        codec.decode(parked, device="moon")


def test_the_step_is_chosen_for_the_divergence(codec: KVCodec) -> None:
    model = MODELS["llama"]
    decoder, found = HFDecoder(model=model), []
    for ids in texts(12, LENGTH, seed=5):
        cache = prefilled(model, ids[:-CONTINUATION])
        parked = codec.encode(cache, ids[:-CONTINUATION])
        exact = decoder.log_probabilities(cache, ids[-CONTINUATION:])
        coded = decoder.log_probabilities(codec.decode(parked), ids[-CONTINUATION:])
        found.append(float((exact.exp() * (exact - coded)).sum(-1).mean()))
    assert 1e-3 < np.mean(found) < 4e-2


def test_finer_steps_lose_less_and_take_more_bytes(codec: KVCodec) -> None:
    ids = texts(1, LENGTH, seed=3)[0]
    cache = prefilled(MODELS["llama"], ids)
    states = HFDecoder(model=MODELS["llama"]).states(cache)
    sizes, errors = [], []
    for step in (codec.relative_finest, 1.0, 4.0, 16.0):
        parked = codec.encode(cache, ids, step=step)
        sizes.append(parked.coded.nbytes)
        errors.append(float((codec.decode_states(parked, like=states.k).k - states.k).norm()))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    assert errors == sorted(errors) and errors[0] < errors[-1]


def test_tokens_near_the_end_are_finer_if_wanted(codec: KVCodec) -> None:
    ids = texts(1, LENGTH, seed=3)[0]
    states = HFDecoder(model=MODELS["llama"]).states(prefilled(MODELS["llama"], ids))
    shifted = codec.code.magnitudes.map(
        lambda own: tuple(replace(m, shifts=np.arange(-8, 24, 2).astype(np.int8)) for m in own)
    )
    own = replace(codec, code=replace(codec.code, magnitudes=shifted))
    errors = {}
    for finer in (False, True):
        parked = own.encode_states(states, ids, finer_at_end=finer)
        assert parked.is_even is not finer
        again = own.decode_states(Parked.from_bytes(parked.to_bytes()), like=states.v)
        errors[finer] = (again.v - states.v).square().sum((1, 2, 3))
    # buckets 0 to 3 have finer steps, those from 5 on coarser ones
    assert errors[True][-8:].sum() < 0.8 * errors[False][-8:].sum()
    assert errors[True][4:-32].sum() > 1.2 * errors[False][4:-32].sum()


def test_first_tokens_are_within_half_a_step_of_eight_bits(codec: KVCodec) -> None:
    ids = texts(1, LENGTH, seed=3)[0]
    states = HFDecoder(model=MODELS["llama"]).states(prefilled(MODELS["llama"], ids))
    again = codec.decode_states(codec.encode_states(states, ids), like=states.k)
    for x, y in zip(again, states, strict=True):
        most = y[: codec.sinks].abs().amax(-1, keepdim=True)
        assert torch.all((x - y)[: codec.sinks].abs() <= most * (0.5 / 127 + 2e-3))


def test_files_of_the_first_format_are_read(codec: KVCodec) -> None:
    from adtn._files import KEY, header_text, sealed
    from safetensors.numpy import save

    def first(kind: str, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> bytes:
        whole = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
        return sealed(save(whole, {KEY: header_text(kind, 1, **header)}))

    ids = texts(1, LENGTH, seed=3)[0]
    states = HFDecoder(model=MODELS["llama"]).states(prefilled(MODELS["llama"], ids))
    arrays, header = codec._content()
    assert not codec.code.is_first and header.pop("least") == FIRST
    new = ("shifts", "nibbles", "nibble_scales")
    data = first("cache codec", {name: x for name, x in arrays.items() if not name.endswith(new)}, header)
    old = KVCodec.from_bytes(data)
    assert old.to_bytes() == data  # so its digest is still that in the files that it has coded
    parked = old.encode_states(states, ids)
    arrays, header = parked._content()
    sinks = {"sinks.k": states.k[: codec.sinks].numpy(), "sinks.v": states.v[: codec.sinks].numpy()}
    del header["is_even"]
    arrays = {name: x for name, x in arrays.items() if "sinks" not in name} | sinks
    again = old.decode_states(Parked.from_bytes(first("parked cache", arrays, header)))
    reference = old.decode_states(parked)
    for x, y, z in zip(again, reference, states, strict=True):
        assert np.array_equal(x[codec.sinks :], y[codec.sinks :])
        assert np.array_equal(x[: codec.sinks], z[: codec.sinks])


def test_token_ids_that_are_shuffled_gain_nothing() -> None:
    model = llama(num_hidden_layers=1)  # states depend on the token alone
    own = KVCodec.calibrate(model, texts(6, LENGTH), continuation=CONTINUATION, kl=1e-2)
    ids = texts(1, LENGTH, seed=3)[0]
    cache = prefilled(model, ids)
    states = HFDecoder(model=model).states(cache)

    def coded(token_ids: np.ndarray, order: str) -> tuple[int, float]:
        parked = own.encode(cache, token_ids, order=order)  # type: ignore[arg-type]
        return parked.coded.nbytes, float((own.decode_states(parked, like=states.k).k - states.k).norm())

    ordered, natural = coded(ids, "ids"), coded(ids, "natural")
    assert ordered[0] < 0.7 * natural[0] and ordered[1] < 1.1 * natural[1]
    assert coded(np.random.default_rng(0).permutation(ids), "ids")[1] > 2.0 * ordered[1]


@pytest.mark.parametrize("kind", ["numpy", "torch", "jax"])
def test_backends_decode_the_same(codec: KVCodec, kind: str) -> None:
    ids = texts(1, LENGTH, seed=3)[0]
    states = HFDecoder(model=MODELS["llama"]).states(prefilled(MODELS["llama"], ids))
    if kind == "jax":
        like = pytest.importorskip("jax").numpy.zeros(1)
    else:
        like = np.zeros(1, np.float32) if kind == "numpy" else torch.zeros(1)
    wanted = codec.encode_states(states, ids)
    own = states.map(lambda x: np.asarray(x) if kind != "torch" else x)
    if kind == "jax":
        own = own.map(_jax)
    parked = codec.encode_states(own, ids)
    assert abs(parked.coded.nbytes - wanted.coded.nbytes) <= 8  # coefficients at the edge of an interval
    found, reference = codec.decode_states(wanted, like=like), codec.decode_states(wanted)
    assert type(found.k) is type(like)
    for x, y in zip(found, reference, strict=True):
        assert np.allclose(np.asarray(x), y, atol=1e-4 * np.abs(y).max())


def _jax(x: np.ndarray) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(x)


def test_files_count_every_byte_and_come_back(codec: KVCodec, tmp_path: Path) -> None:
    model, ids = MODELS["llama"], texts(1, LENGTH, seed=3)[0]
    cache = prefilled(model, ids)
    parked = codec.encode(cache, ids)
    parked.save(tmp_path / "a.parked")
    codec.save(tmp_path / "codec.safetensors")
    assert (tmp_path / "a.parked").stat().st_size == parked.nbytes == sum(parked.bytes_by_part.values())
    assert (tmp_path / "codec.safetensors").stat().st_size == codec.nbytes
    assert np.isclose(parked.bits_per_value * LENGTH * 3 * 2 * 2 * 8 / 8, parked.nbytes)
    again = KVCodec.load(tmp_path / "codec.safetensors", model)
    assert again.digest == codec.digest
    for x, y in zip(again.decode(Parked.load(tmp_path / "a.parked")).layers, codec.decode(parked).layers, strict=True):
        assert torch.equal(x.keys, y.keys) and torch.equal(x.values, y.values)


def test_a_second_process_goes_on(codec: KVCodec, tmp_path: Path) -> None:
    ids = texts(1, LENGTH, seed=3)[0]
    codec.encode(prefilled(MODELS["llama"], ids), ids).save(tmp_path / "a.parked")
    codec.save(tmp_path / "codec.safetensors")
    script = (
        "import sys, torch; from kv_models import llama; from adtn.kv import KVCodec, Parked\n"
        "model = llama(); codec = KVCodec.load(sys.argv[1], model); parked = Parked.load(sys.argv[2])\n"
        "ids = torch.tensor([*parked.token_ids.tolist(), 3])[None]\n"
        "out = model.generate(ids, past_key_values=codec.decode(parked), max_new_tokens=6, do_sample=False)\n"
        "print(out[0, -6:].tolist())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "codec.safetensors"), str(tmp_path / "a.parked")]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**_environment(), "PYTHONPATH": ":".join(sys.path)}, check=True
    )
    parked = Parked.load(tmp_path / "a.parked")
    here = MODELS["llama"].generate(
        torch.tensor([*parked.token_ids.tolist(), 3])[None],
        past_key_values=codec.decode(parked),
        max_new_tokens=6,
        do_sample=False,
    )
    assert result.stdout.strip() == str(here[0, -6:].tolist())


def test_the_command_line_goes_from_texts_to_a_parked_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from adtn.cli import main

    (tmp_path / "small.py").write_text("from kv_models import llama\n")
    np.save(tmp_path / "a.npy", texts(1, 400)[0])
    np.save(tmp_path / "b.npy", texts(1, 400, seed=1)[0])
    np.save(tmp_path / "prompt.npy", texts(1, 50, seed=2)[0])
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["adtn", "kv", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    sizes = ("--length", "48", "--continuation", "16")
    out = run("calibrate", "small:llama", "--text", "a.npy", "--text", "b.npy", "--texts", "6", "--kl", "0.01", *sizes)
    assert "of the model" in out and (tmp_path / "codec.safetensors").exists()
    out = run("encode", "small:llama", "codec.safetensors", "--text", "prompt.npy")
    assert "50 tokens" in out and (tmp_path / "prefix.parked").exists()
    out = run(
        "report", "small:llama", "codec.safetensors", "--text", "b.npy", "--texts", "2", "--out", "r.json", *sizes
    )
    assert "KIVI int2" in out and (tmp_path / "r.json").exists()
    monkeypatch.setattr(sys, "argv", ["adtn", "kv", "decode", "small:llama", "codec.safetensors", "prefix.parked"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1 and "no tokenizer" in capsys.readouterr().err


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def test_damage_is_found(codec: KVCodec, tmp_path: Path) -> None:
    ids = texts(1, LENGTH)[0]
    parked = codec.encode(prefilled(MODELS["llama"], ids), ids)
    for data, read in ((parked.to_bytes(), Parked.from_bytes), (codec.to_bytes(), KVCodec.from_bytes)):
        for damaged in (
            data[:-1],
            data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
            b"",
        ):
            with pytest.raises(FileFormatError):
                read(damaged)


def test_wrong_input_is_refused(codec: KVCodec, tmp_path: Path) -> None:
    model, ids = MODELS["llama"], texts(1, LENGTH)[0]
    cache = prefilled(model, ids)
    parked = codec.encode(cache, ids)
    codec.save(tmp_path / "codec.safetensors")
    with pytest.raises(KVCacheError, match="digest"):
        KVCodec.load(tmp_path / "codec.safetensors", llama(seed=1))
    with pytest.raises(KVCacheError, match="no model"):
        KVCodec.load(tmp_path / "codec.safetensors").encode(cache, ids)
    with pytest.raises(KVCacheError, match=r"tokens, layers, heads"):
        codec.encode(cache, ids[:-1])
    with pytest.raises(KVCacheError, match="one sequence"):
        codec.encode(cache, np.stack([ids, ids]))
    with pytest.raises(KVCacheError, match="step"):
        codec.encode(cache, ids, step=0.01)
    with pytest.raises(KVCacheError, match="by the codec"):
        other = KVCodec.calibrate(model, texts(2, LENGTH, seed=8), continuation=CONTINUATION, kl=1e-2)
        other.decode(parked)
    two = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.as_tensor(np.stack([ids, ids])), past_key_values=two)
    with pytest.raises(KVCacheError, match="2 sequences"):
        codec.encode(two, ids)
    with pytest.raises(KVCacheError, match="expected a model such as"):
        KVCodec.calibrate(torch.nn.Linear(2, 2), texts(2, LENGTH))
    for options in (
        {"kl": -1.0},
        {"samples": 0},
        {"sinks": -1},
        {"finest": 2.0},
        {"weighting": "x"},
        {"kl": np.nan},
        {"least": 0.1},
    ):
        with pytest.raises(KVCacheError, match=f"Got {next(iter(options))}"):
            KVCodec.calibrate(model, texts(2, LENGTH), **{"continuation": CONTINUATION, **options})
    with pytest.raises(KVCacheError, match="token ids from"):
        KVCodec.calibrate(model, texts(2, LENGTH) + 1000, continuation=CONTINUATION)
    for nothing in (None, (1, 2)):
        with pytest.raises(KVCacheError, match="expected a DynamicCache"):
            codec.encode(nothing, ids)
    with pytest.raises(KVCacheError, match="coder"):
        codec.encode(cache, ids, coder="zip")  # type: ignore[arg-type]
    with pytest.raises(KVCacheError, match="DynamicSlidingWindowLayer"):
        KVCodec.calibrate(
            MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8)), texts(2, LENGTH)
        )
    with pytest.raises(KVCacheError, match="at least"):
        KVCodec.calibrate(model, texts(2, 10))
    with pytest.raises(adtn.ADTNError, match="filled"):
        codec.encode(DynamicCache(config=model.config), ids)


def test_stores_find_the_longest_prefix_and_keep_their_limit(codec: KVCodec, tmp_path: Path) -> None:
    model = MODELS["llama"]
    a, b, c = texts(3, LENGTH, seed=4)
    b[:40] = a[:40]
    store = PromptStore(tmp_path / "prompts", codec, limit=1 << 20)
    assert store.get(a) is None
    for ids in (a, b):
        store.put(prefilled(model, ids), ids)
    assert len(store) == 2
    found = store.get(np.concatenate([b, c]))
    assert found is not None and found.tokens == LENGTH == found.cache.get_seq_length()
    part = store.get(np.concatenate([a[:30], c]))
    assert part is not None and part.tokens == part.cache.get_seq_length() == 30
    assert store.get(c[::-1] + 0, least=20) is None
    small = PromptStore(tmp_path / "prompts", codec, limit=store.nbytes + 10)
    small.put(prefilled(model, c), c)
    assert small.nbytes <= small.limit and small.get(c) is not None
    with pytest.raises(KVCacheError, match="limit"):
        PromptStore(tmp_path / "prompts", codec, limit=10).put(prefilled(model, c), c)


def test_damaged_prefixes_are_deleted(codec: KVCodec, tmp_path: Path) -> None:
    ids = texts(1, LENGTH, seed=4)[0]
    store = PromptStore(tmp_path, codec)
    store.put(prefilled(MODELS["llama"], ids), ids)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.warns(OutputWarning, match="damaged"):
        assert store.get(ids) is None
    assert not list(tmp_path.iterdir())


def test_a_report_has_every_way_beside_the_codec(codec: KVCodec, tmp_path: Path) -> None:
    report = kv_report(codec, texts(2, LENGTH, seed=6), continuation=CONTINUATION, steps=(1.0, 4.0))
    rows = {row.name: row for row in report.rows}
    assert abs(rows["bfloat16"].divergence) < 1e-3 and rows["bfloat16"].ratio == 16.0 / rows["bfloat16"].bits_per_value
    assert rows["adtn, step 4"].bits_per_value < rows["adtn, step 1"].bits_per_value
    assert rows["int8, groups of 64"].divergence < rows["int3, groups of 64"].divergence
    assert report.codec_bytes == codec.nbytes and report.break_even > 0
    assert np.isclose(sum(report.shares.values()), 1.0)
    for name in ("report.json", "report.html"):
        report.save(tmp_path / name)
        assert "adtn, step 1" in (tmp_path / name).read_text()
    assert "int8, groups of 64" in str(report)
    with pytest.raises(KVCacheError, match="html"):
        report.save(tmp_path / "report.txt")
