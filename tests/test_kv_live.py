"""Caches that code their old tokens while a model generates, beside a plain ``DynamicCache``.

Most codecs here are so fine that both must choose the same tokens; what coarse ones lose is measured apart.
"""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from adtn.errors import KVCacheError
from adtn.kv import KVCodec, LayerCode, Order
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from adtn_backends.torch._decoder import HFDecoder
from adtn_backends.torch._live import LiveCache, LiveLayer
from kv_models import llama, models, texts

LENGTH, NEW = 40, 8
MODELS = models()
SMALL: dict[str, Any] = {"window": 6, "chunk": 12}


@cache
def codec_of(name: str) -> KVCodec:
    """A codec so fine that errors are about those of rounding."""
    return KVCodec.calibrate(
        MODELS[name], texts(4, 48), continuation=8, kl=1e-6, layers_per_basis=1, samples=1, weighting="scalar"
    )


@pytest.fixture(scope="module")
def codec() -> KVCodec:
    return codec_of("llama")


def ids_of(batch: int = 1, length: int = LENGTH, seed: int = 3) -> torch.Tensor:
    return torch.as_tensor(texts(batch, length, seed=seed))


def plain(model: Any) -> DynamicCache:
    return DynamicCache(config=model.config)


def generated(model: Any, past: Any, ids: torch.Tensor, **options: Any) -> Any:
    """Generate with a seed, and return tokens and scores."""
    torch.manual_seed(0)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    return model.generate(ids, past_key_values=past, return_dict_in_generate=True, output_logits=True, **options)


def assert_same(model: Any, live: LiveCache, ids: torch.Tensor, **options: Any) -> None:
    """Compare what is generated with a live and with a plain cache."""
    exact, own = (generated(model, past, ids, **options) for past in (plain(model), live))
    assert torch.equal(exact.sequences, own.sequences)
    for a, b in zip(exact.logits, own.logits, strict=True):
        assert torch.allclose(a, b, atol=2e-2 * float(a.abs().max()))
    assert coded_tokens(live) > 0


def coded_tokens(live: LiveCache) -> int:
    return sum(row.coded_tokens for layer in live.layers if isinstance(layer, LiveLayer) for row in layer.rows)


def read(model: Any, past: Any, ids: torch.Tensor, *sizes: int, **options: Any) -> torch.Tensor:
    """Read tokens in pieces, and return the scores of the last piece."""
    out = torch.empty(0)
    with torch.no_grad():
        for piece in ids.split([ids.shape[1]] if not sizes else list(sizes), 1):
            out = model(input_ids=piece, past_key_values=past, use_cache=True, **options).logits
    return out


@pytest.mark.parametrize("name", ["llama", "gpt2, no rotation", "gemma2, one layer slides"])
def test_wide_windows_change_nothing(name: str) -> None:
    model, ids = MODELS[name], ids_of(2)
    exact, own = (generated(model, past, ids) for past in (plain(model), codec_of(name).live(window=200)))
    assert torch.equal(exact.sequences, own.sequences)
    assert all(torch.equal(a, b) for a, b in zip(exact.logits, own.logits, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_the_same(name: str) -> None:
    live = codec_of(name).live(**SMALL)
    assert_same(MODELS[name], live, ids_of())
    assert live.get_seq_length() == LENGTH + NEW - 1
    kinds = [type(layer).__name__ for layer in live.layers]
    assert kinds.count("LiveLayer") == (2 if "slides" in name else 3)
    assert kinds.count("DynamicSlidingWindowLayer") == (1 if "slides" in name else 0)


@pytest.mark.parametrize("name", ["llama", "gpt2, no rotation", "gemma2, one layer slides"])
def test_left_padding(name: str) -> None:
    ids, mask = ids_of(3), torch.ones((3, LENGTH), dtype=torch.long)
    for row, padding in ((1, 11), (2, 25)):
        ids[row, :padding], mask[row, :padding] = 0, 0
    assert_same(MODELS[name], codec_of(name).live(**SMALL), ids, attention_mask=mask)


def test_sinks_begin_after_left_padding(codec: KVCodec) -> None:
    ids, mask = ids_of(2), torch.ones((2, LENGTH), dtype=torch.long)
    ids[1, :13], mask[1, :13] = 0, 0
    coarse = codec.live(step=1e4, **SMALL)
    exact = generated(MODELS["llama"], plain(MODELS["llama"]), ids, attention_mask=mask).past_key_values
    generated(MODELS["llama"], coarse, ids, attention_mask=mask, max_new_tokens=1)
    keys = coarse.layers[0]._past().states.k
    for row, start in ((0, 0), (1, 13)):
        own, other = (x[row, :, start : start + 5] for x in (keys, exact.layers[0].keys))
        assert torch.equal(own[:, :4], other[:, :4]) and not torch.allclose(own[:, 4], other[:, 4], rtol=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.7},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"prompt_lookup_num_tokens": 4},
        {"assistant_model": llama(seed=1)},
        {"assistant_model": MODELS["llama"]},
    ],
    ids=["sampled", "several", "beams", "several beams", "prompt lookup", "assisted", "assisted by itself"],
)
def test_ways_to_generate(codec: KVCodec, options: dict[str, Any]) -> None:
    assert_same(MODELS["llama"], codec.live(**SMALL), ids_of(), **options)


def test_positions_are_those_that_the_user_gives(codec: KVCodec) -> None:
    model, ids = MODELS["llama"], ids_of(2, 30)
    random = np.random.default_rng(0)
    given = torch.as_tensor(np.sort(random.choice(400, (2, 30), replace=False), -1))
    found: list[torch.Tensor] = []
    for past in (plain(model), codec.live(window=2, chunk=5)):
        for own in (slice(0, 17), slice(17, 18), slice(18, 30)):
            with torch.no_grad():
                out = model(input_ids=ids[:, own], position_ids=given[:, own], past_key_values=past)
        found.append(out.logits)
    assert torch.allclose(*found, atol=2e-2 * float(found[0].abs().max()))


def test_keys_are_coded_as_before_their_rotation(codec: KVCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares keys of the first layer, which depend on tokens alone, whatever positions they had."""
    model, ids = MODELS["llama"], ids_of(2, 30)
    random = np.random.default_rng(0)
    given = torch.as_tensor(np.sort(random.choice(np.arange(1, 400), (2, 30), replace=False), -1))
    given[1] = torch.arange(7, 37)
    found: list[torch.Tensor] = []
    live = codec.live(window=2, chunk=7, sinks=0)
    encode = LayerCode.encode

    def seen(code: LayerCode, states: Any, *more: Any) -> Any:
        if code is live.layers[0].code:
            found.append(states.k)
        return encode(code, states, *more)

    monkeypatch.setattr(LayerCode, "encode", seen)
    for own in (slice(0, 17), slice(17, 18), slice(18, 30)):
        with torch.no_grad():
            model(input_ids=ids[:, own], position_ids=given[:, own], past_key_values=live)
    decoder = HFDecoder(model=model)
    expected = [decoder.states(decoder.prefill(row.numpy())).k[:, 0] for row in ids]
    scale = float(expected[0].abs().max())
    for chunk in range(4):
        for row in range(2):
            exact = expected[row][7 * chunk : 7 * chunk + 7]
            assert torch.allclose(found[2 * chunk + row], exact, atol=1e-4 * scale)
    live.crop(-20)
    assert torch.equal(live.layers[0]._places, given[:, 7:10].int())


@pytest.mark.parametrize("removed", [0, 1, 15, 16, 17, 28, 33, 40, 90])
def test_crops(codec: KVCodec, removed: int) -> None:
    model, ids = MODELS["llama"], ids_of(2)
    past, live = plain(model), codec.live(**SMALL, cached=removed % 2 == 0)
    for own in (past, live):
        read(model, own, ids, 30, 10)
        own.crop(-removed)
    assert live.get_seq_length() == max(LENGTH - removed, 0) == past.get_seq_length()
    assert live.get_mask_sizes(3, 0) == past.get_mask_sizes(3, 0)
    more = ids_of(2, 20, seed=8)
    exact, found = read(model, past, more, 3, 17), read(model, live, more, 3, 17)
    assert torch.allclose(exact, found, atol=2e-2 * float(exact.abs().max()))
    assert live.nbytes == held_bytes(live)


CHANGES: dict[str, Callable[[Any], None]] = {
    "repeated": lambda past: past.batch_repeat_interleave(2),
    "selected": lambda past: past.batch_select_indices(torch.tensor([2, 0])),
    "selected by a mask": lambda past: past.batch_select_indices(torch.tensor([False, True, True])),
    "reordered": lambda past: past.reorder_cache(torch.tensor([2, 2, 0])),
    "away and back": lambda past: [f() for layer in past.layers for f in (layer.offload, layer.prefetch)] and None,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cached", [False, True])
def test_batches_change(codec: KVCodec, change: str, cached: bool) -> None:
    model, found, lengths = MODELS["llama"], [], set()
    for past in (plain(model), codec.live(**SMALL, cached=cached)):
        read(model, past, ids_of(3), 30, 10)
        CHANGES[change](past)
        batch = past.layers[0].keys.shape[0]
        found.append(read(model, past, ids_of(batch, 20, seed=5), 1, 19))
        lengths.add(past.get_seq_length())
    assert torch.allclose(*found, atol=2e-2 * float(found[0].abs().max()))
    assert lengths == {LENGTH + 20}


@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.data())
def test_any_sequence_of_changes(data: st.DataObject) -> None:
    model, codec = MODELS["llama"], codec_of("llama")
    window, chunk = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 7))
    past, live = plain(model), codec.live(window=window, chunk=chunk, cached=data.draw(st.booleans()))
    batch = 2
    for seed in range(data.draw(st.integers(1, 4))):
        size, removed = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 12))
        exact, found = (read(model, own, ids_of(batch, size, seed)) for own in (past, live))
        assert torch.allclose(exact, found, atol=3e-2 * float(exact.abs().max()))
        order = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=3)))
        for own in (past, live):
            own.crop(-removed)
            own.reorder_cache(order)
        assert live.get_seq_length() == past.get_seq_length() and live.nbytes == held_bytes(live)
        assert all(layer.keys.shape[-2] < window + max(chunk, 1) for layer in live.layers)
        batch = len(order) if past.get_seq_length() else batch


def test_conversations_go_on(codec: KVCodec) -> None:
    model, live, past = MODELS["llama"], codec.live(**SMALL), plain(MODELS["llama"])
    ids = {own: ids_of() for own in (live, past)}
    for seed in range(2):
        for own in (live, past):
            out = generated(model, own, ids[own]).sequences
            ids[own] = torch.cat((out, ids_of(1, 7, seed)), -1)
    assert torch.equal(ids[live], ids[past])


def test_repeated_sequences_share_what_is_coded(codec: KVCodec) -> None:
    live = codec.live(**SMALL)
    read(MODELS["llama"], live, ids_of())
    before = sum(row.nbytes for layer in live.layers for row in layer.rows)
    live.batch_repeat_interleave(5)
    assert sum(row.nbytes for layer in live.layers for row in layer.rows) == before


def test_reset_caches_are_as_new(codec: KVCodec) -> None:
    model, live = MODELS["llama"], codec.live(**SMALL)
    first = generated(model, live, ids_of()).sequences
    live.reset()
    assert live.nbytes == live.get_seq_length() == 0 == live.compressed_bits_per_value
    assert torch.equal(generated(model, live, ids_of()).sequences, first)
    live.reset()
    assert_same(model, live, ids_of(2, seed=11))


@pytest.mark.parametrize("name", ["llama", "gpt2, no rotation"])
@pytest.mark.parametrize("cached", [False, True])
def test_chunks_decode_to_what_a_whole_prefix_does(name: str, cached: bool) -> None:
    """Compare predictions across chunks with those where all layers are coded at once."""
    model, codec, ids = MODELS[name], codec_of(name), ids_of(1, 60)
    parked = codec.encode(HFDecoder(model=model).prefill(ids[0].numpy()), ids[0], step=2.0**9, finer_at_end=False)
    exact = codec.decode(parked)
    live = codec.live(step=2.0**9, window=0, chunk=12, cached=cached)
    read(model, live, ids)
    for own, other in zip(live.layers, exact.layers, strict=True):
        found = own._past().states
        for x, y in ((found.k, other.keys), (found.v, other.values)):
            assert torch.allclose(x[..., 4:, :], y[..., 4:, :], rtol=0.0, atol=1e-5 * float(y.abs().max()))


def test_ids_need_fewer_bits_where_they_are_known(codec: KVCodec) -> None:
    model, ids = MODELS["llama"], ids_of(2, 200)
    options = {"window": 0, "chunk": 40, "step": 2.0**8}
    found: dict[str, LiveCache] = {}
    for name, order in (("ids", "ids"), ("natural", "natural"), ("vectors", "ids")):
        found[name] = codec.live(order=order, **options)
        with torch.no_grad():
            given = {"inputs_embeds": model.get_input_embeddings()(ids)} if name == "vectors" else {"input_ids": ids}
            if name == "vectors":
                model(input_ids=ids[:, :7], use_cache=False)  # what was heard of another text is not taken for theirs
            model(**given, past_key_values=found[name])
    bits = {name: 8 * sum(r.coded.nbytes for x in own.layers for r in x.rows) for name, own in found.items()}
    assert bits["ids"] < 0.97 * bits["natural"] == 0.97 * bits["vectors"]


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.data())
def test_parts_of_sequences_are_ordered_as_the_sequences(data: st.DataObject) -> None:
    ids = [np.array(data.draw(st.lists(st.integers(-1, 3), min_size=0, max_size=5)), np.int32) for _ in range(6)]
    parents = [data.draw(st.integers(-1, k - 1)) for k in range(6)]
    chains: list[list[int]] = []
    for k in range(6):
        chain = [k]
        while parents[chain[0]] >= 0:
            chain.insert(0, parents[chain[0]])
        chains.append(chain)
    order = Order.of_chains(ids, chains)
    starts = np.cumsum([0, *map(len, ids)])
    for chain in chains:
        at = [int(starts[k]) + j for k in chain for j in range(len(ids[k]))]
        own = [int(x) for k in chain for x in ids[k]]
        for n, (t, x) in enumerate(zip(at, own, strict=True)):
            earlier = [m for m in range(n) if own[m] == x >= 0]
            assert order.counts[t] == len(earlier)
            assert not earlier or order.previous[t] == at[earlier[-1]]


@pytest.mark.parametrize("coder", ["ans", "rice"])
def test_coders_agree(codec: KVCodec, coder: str) -> None:
    found = [codec.live(**SMALL, coder=name) for name in ("ans", coder)]
    scores = [read(MODELS["llama"], live, ids_of(), 30, 10) for live in found]
    assert torch.equal(*scores)


def held_bytes(root: Any) -> int:
    """Count the bytes of the storages of all arrays that a cache refers to, without the model and the codec."""
    seen: set[int] = set()
    found: dict[int, int] = {}
    left = [root]
    while left:
        x = left.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, torch.Tensor):
            storage = x.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(x, np.ndarray):
            base = x if x.base is None else x.base
            found[id(base)] = base.nbytes
        elif isinstance(x, dict):
            left.extend(x.values())
        elif isinstance(x, (list, tuple)):
            left.extend(x)
        elif type(x).__name__ not in ("LayerCode", "Positions", "TokenIds") and hasattr(x, "__dict__"):
            left.extend(vars(x).values())
    return sum(found.values())


@pytest.mark.parametrize("options", [{}, {"cached": True}, {"coder": "rice"}, {"window": 0}])
def test_every_byte_is_counted(codec: KVCodec, options: dict[str, Any]) -> None:
    model = MODELS["llama"]
    live, past = codec.live(step=2.0**14, **{**SMALL, "chunk": 64, **options}), plain(model)
    for own in (live, past):
        read(model, own, ids_of(2, 400), 100, 299, 1)
    dense = sum(x.nbytes for layer in past.layers for x in (layer.keys, layer.values))
    values = dense // 4
    assert live.nbytes == held_bytes(live)
    assert np.isclose(live.bits_per_value, 8 * live.nbytes / values)
    assert (live.nbytes > 0.8 * dense) if options.get("cached") else (live.nbytes < dense / 3)
    assert 0.0 < live.compressed_bits_per_value < 8.0
    assert all(layer.keys.shape[-2] < 64 + 6 + 1 for layer in live.layers)


def test_losses_are_bounded_and_grow_with_the_step() -> None:
    model = MODELS["llama"]
    codec = KVCodec.calibrate(model, texts(6, 72), continuation=16, kl=1e-3, layers_per_basis=1)
    found: list[float] = []
    sizes: list[float] = []
    for step in (codec.relative_finest, 4.0, 64.0):
        losses: list[float] = []
        for seed in range(3):
            past, live = plain(model), codec.live(step=step, window=8, chunk=16)
            exact, own = (read(model, x, ids_of(1, 88, seed), 72, 16).float().log_softmax(-1) for x in (past, live))
            losses.append(float((exact.exp() * (exact - own)).sum(-1).mean()))
            sizes.append(live.compressed_bits_per_value)
        found.append(float(np.mean(losses)))
    assert found == sorted(found) and found[0] < 2e-3 and found[-1] > 10 * found[0]
    assert sizes[::3] == sorted(sizes[::3], reverse=True)


def test_caches_do_not_disturb_each_other(codec: KVCodec) -> None:
    model, other = MODELS["llama"], MODELS["qwen3, normalised keys"]
    ids, expected = (
        ids_of(2),
        [
            read(m, plain(m), x, 20, 10, 10)
            for m, x in ((model, ids_of(2)), (model, ids_of(2, seed=5)), (other, ids_of(2)))
        ],
    )
    a, b, c = codec.live(**SMALL), codec.live(**SMALL), codec_of("qwen3, normalised keys").live(**SMALL)
    readers = ((model, a, ids), (model, b, ids_of(2, seed=5)), (other, c, ids))
    found = [torch.empty(0)] * 3
    for own in (slice(0, 20), slice(20, 30), slice(30, 40)):
        for k, (m, past, x) in enumerate(readers):
            found[k] = read(m, past, x[:, own])
    for x, y in zip(expected, found, strict=True):
        assert torch.allclose(x, y, atol=2e-2 * float(x.abs().max()))


def test_threads_do_not_disturb_each_other(codec: KVCodec) -> None:
    model, seeds = MODELS["llama"], (3, 5, 7)
    expected = [generated(model, plain(model), ids_of(1, 30 + s, s)).sequences for s in seeds]
    found: dict[int, torch.Tensor] = {}

    def run(seed: int) -> None:
        options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        found[seed] = model.generate(ids_of(1, 30 + seed, seed), past_key_values=codec.live(**SMALL), **options)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(x, found[seed]) for x, seed in zip(expected, seeds, strict=True))


def test_copies_go_on_apart(codec: KVCodec) -> None:
    model, live = MODELS["llama"], codec.live(**SMALL)
    read(model, live, ids_of())
    fork = copy.deepcopy(live)
    assert fork.layers[0].chunks[0][0] is live.layers[0].chunks[0][0]
    assert fork.layers[0].code is live.layers[0].code
    past = plain(model)
    read(model, past, ids_of())
    for own, seed in ((fork, 1), (live, 2)):
        exact = read(model, copy.deepcopy(past), ids_of(1, 9, seed))
        assert torch.allclose(read(model, own, ids_of(1, 9, seed)), exact, atol=2e-2 * float(exact.abs().max()))


def test_listeners_leave_with_their_cache(codec: KVCodec) -> None:
    hooks = HFDecoder(model=MODELS["llama"]).rotary.module._forward_hooks
    embedding = MODELS["llama"].get_input_embeddings()
    gc.collect()
    before = len(hooks)
    live = codec.live(**SMALL)
    read(MODELS["llama"], live, ids_of())
    assert len(hooks) == before + 1 and len(embedding._forward_hooks) == 1
    del live
    assert len(hooks) == before
    with codec.live(**SMALL) as live:
        read(MODELS["llama"], live, ids_of())
    assert len(hooks) == before and not embedding._forward_hooks and live.nbytes > 0
    with pytest.raises(KVCacheError, match="closed"):
        read(MODELS["llama"], live, ids_of())


def test_keys_without_positions_are_refused(codec: KVCodec) -> None:
    model, live = MODELS["llama"], codec.live(**SMALL)
    keys = torch.zeros(1, 2, 5, 8)
    with pytest.raises(KVCacheError, match="without their positions"):
        live.update(keys, keys, 0)
    read(model, live, ids_of(1, 5))
    with pytest.raises(KVCacheError, match="without their positions"):
        live.update(keys, keys, 0)
    read(model, plain(model), ids_of(1, 7))
    with pytest.raises(KVCacheError, match=r"positions of shape \(1, 7\)"):
        live.update(keys, keys, 0)
    assert live.get_seq_length() == 5
    with pytest.raises(KVCacheError, match="without their positions"):
        read(llama(seed=1), codec.live(), ids_of())


def test_wrong_options_are_refused(codec: KVCodec) -> None:
    with pytest.raises(KVCacheError, match="layers_per_basis=1"):
        KVCodec.calibrate(MODELS["llama"], texts(3, 48), continuation=8, layers_per_basis=2, kl=1e-2).live()
    for options, match in (
        ({"chunk": 0}, "chunk=0"),
        ({"window": -1}, "window=-1"),
        ({"coder": "zip"}, "'zip'"),
        ({"order": "size"}, "'size'"),
    ):
        with pytest.raises(KVCacheError, match=match):
            codec.live(**options)
    with pytest.raises(KVCacheError, match="step"):
        codec.live(step=1e-9)
    with pytest.raises(KVCacheError, match="tokens_to_remove=3"):
        codec.live().crop(3)
    changing = llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    own = KVCodec.calibrate(changing, texts(3, 48), continuation=8, layers_per_basis=1, kl=1e-2)
    with pytest.raises(KVCacheError, match="number of tokens"):
        own.live()


def test_half_precision() -> None:
    model = llama().bfloat16()
    codec = KVCodec.calibrate(model, texts(4, 48), continuation=8, kl=1e-3, layers_per_basis=1, weighting="scalar")
    live, past = codec.live(**SMALL), plain(model)
    exact, own = (read(model, x, ids_of(2, 60), 40, 20).float().log_softmax(-1) for x in (past, live))
    assert live.layers[0].keys.dtype == torch.bfloat16 == live.layers[0]._past().states.k.dtype
    assert float((exact.exp() * (exact - own)).sum(-1).mean()) < 0.05
