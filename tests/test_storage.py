"""Files: bit-equal parameters, and one clear error for every file that is not valid."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from pathlib import Path

import adtn
import numpy as np
import pytest
from adtn import Layout, Precision
from adtn.compression import read_header
from adtn.compression._storage import FORMAT, from_bytes, structure_from_json, structure_to_json, to_bytes
from adtn.errors import FileFormatError
from adtn.precision import Codes
from safetensors.numpy import save as save_plain

from table import to_numpy

GEN = adtn.Generator((24, 30), adtn.ATTN(bond=2), layout=Layout.of((24, 30), 3), base=adtn.SeededBase(7))


@pytest.mark.parametrize(
    "base",
    [None, adtn.SeededBase(3, "sign"), adtn.IdentityBase(), np.arange(720.0).reshape(24, 30)],
    ids=["none", "seeded", "identity", "given"],
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_round_trip_is_bit_equal(tmp_path: Path, base, dtype: str) -> None:
    gen = adtn.Generator((24, 30), adtn.TTN(bond=3), layout=Layout.of((24, 30), 3), base=base, dtype=dtype, scale=0.1)
    adtn.save(tmp_path / "x", gen)
    back = adtn.load(tmp_path / "x")
    assert back.dtype == dtype and back.scale == gen.scale
    for name, x in gen.params.items():
        assert back.params[name].tobytes() == x.tobytes()
    assert back.weight().tobytes() == gen.weight().tobytes()
    assert to_bytes(back) == to_bytes(gen)


def test_load_gives_the_same_weight_on_every_backend(device: str) -> None:
    back = from_bytes(to_bytes(GEN))
    assert all(
        np.array_equal(to_numpy(x), back.params[k])
        for k, x in back.arrays(device, "float32").items()
        if k in back.params
    )
    assert np.allclose(to_numpy(back.weight(device)), GEN.weight(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("store", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_half_storage_rounds_to_nearest(store: str, bits: int) -> None:
    data = to_bytes(GEN, store)  # type: ignore[arg-type]
    back = from_bytes(data)
    for name, x in GEN.params.items():
        assert np.all(np.abs(back.params[name] - x) <= np.abs(x) * 2.0**-bits + 1e-7)
    assert len(data) < len(to_bytes(GEN))
    assert to_bytes(back, store) == data, "rounding twice changes nothing"  # type: ignore[arg-type]


def test_bfloat16_is_what_torch_rounds_to() -> None:
    torch = pytest.importorskip("torch")
    # halfway cases too: 1 + 2^-8 goes down to 1, 1 + 3 * 2^-8 goes up to 1 + 2^-6
    halves = 1.0 + 2.0**-8 * np.arange(GEN.params["root"].size).reshape(GEN.params["root"].shape)
    gen = GEN.with_params({**GEN.params, "root": halves})
    back = from_bytes(to_bytes(gen, "bfloat16"))
    for name, x in gen.params.items():
        assert np.array_equal(back.params[name], torch.tensor(np.asarray(x)).bfloat16().float().numpy())


def test_a_parameter_that_does_not_fit_is_refused() -> None:
    big = GEN.with_params({k: x * 1e6 + 1e6 for k, x in GEN.params.items()})
    with pytest.raises(FileFormatError, match="not finite in float16"):
        to_bytes(big, "float16")
    with pytest.raises(FileFormatError, match="expected one of float64"):
        to_bytes(GEN, "float8")  # type: ignore[arg-type]


def mutate(data: bytes, rng: random.Random) -> bytes:
    b = bytearray(data)
    kind = rng.randrange(6)
    at = rng.randrange(len(b))
    if kind <= 1:
        b[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        b = b[:at]
    elif kind == 3:
        b[at : at + rng.randrange(1, 20)] = bytes(rng.randrange(256) for _ in range(rng.randrange(20)))
    elif kind == 4:
        b[:8] = rng.randrange(2**64).to_bytes(8, "little")
    else:
        b[at:at] = b[rng.randrange(len(b)) :][: rng.randrange(1, 50)]
    return bytes(b)


def test_two_thousand_mutated_files(tmp_path: Path) -> None:
    data = to_bytes(GEN)
    rng = random.Random(0)
    path = tmp_path / "x.safetensors"
    refused = 0
    tracemalloc.start()
    for _ in range(2000):
        bad = mutate(data, rng)
        if bad == data:
            continue
        path.write_bytes(bad)
        with pytest.raises(FileFormatError, match="."):
            adtn.load(path)
        refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 1950
    assert peak < 4 * 2**20, "no allocation beyond a few times the file"


def test_every_single_bit_is_guarded() -> None:
    data = to_bytes(adtn.Generator((4, 4), adtn.TT(bond=1), layout=Layout.of((4, 4), 4)))
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 1
        with pytest.raises(FileFormatError):
            from_bytes(bytes(bad))


def forged(change, gen: adtn.Generator = GEN) -> bytes:
    """Make a file with a changed header and a correct digest, as a careless or hostile writer might."""
    data = to_bytes(gen)
    header = read_header(data)
    change(header)
    end = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:end])
    head["__metadata__"] = {"adtn": json.dumps({**header, "sha256": "0" * 64} if header else {})}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    blank = len(text).to_bytes(8, "little") + text + data[end:]
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


def setter(*keys, value):
    def change(header) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


def test_forging_works() -> None:
    assert np.array_equal(from_bytes(forged(lambda header: None)).weight(), GEN.weight())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("format", value=FORMAT + 1), f"version {FORMAT + 1}; this adtn reads up to {FORMAT}. Upgrade"),
        (setter("format", value="x"), "version x"),
        (setter("layout", "shape", value=[10**9, 10**9]), "does not describe|fewer than"),
        (setter("layout", "factors", value=[[2] * 40, [2] * 40]), "does not describe"),
        (setter("layout", "factors", value=[[2**40], [2**40]]), "does not describe"),
        (setter("layout", "order", value=[0] * 6), "does not describe"),
        (setter("layout", "shape", value="abc"), "list of integers"),
        (setter("layout", value=None), "does not describe"),
        (setter("topology", "bond", value=10**12), "does not describe"),
        (setter("topology", "bond", value=-1), "does not describe"),
        (setter("topology", "name", value="BrickWall"), "does not describe"),
        (setter("topology", value={"name": "BrickWall", "layers": 10**9}), "does not describe"),
        (setter("topology", value={"name": "TTN", "activation": "__import__"}), "not registered here"),
        (setter("topology", value=[]), "does not describe"),
        (setter("scale", value="nan"), "does not describe"),
        (setter("scale", value=3), "does not describe"),
        (setter("dtype", value="object"), "does not describe"),
        (setter("base", value={"kind": "given", "dtype": "object"}), "does not describe"),
        (
            setter("base", value={"kind": "seeded", "seed": -1, "distribution": "uniform"}),
            "does not describe",
        ),
        (lambda header: header.clear(), "no adtn header"),
    ],
)
def test_absurd_headers(change, message: str) -> None:
    data = forged(change)
    tracemalloc.start()
    with pytest.raises(FileFormatError, match=message):
        from_bytes(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    for content, message in [
        (b"", "0 bytes"),
        (b"\x80\x04\x95" * 50, "claims"),
        (save_plain({"a": np.ones(3)}), "no adtn header"),
        (save_plain({"a": np.ones(3)}, {"adtn": "[" * 100_000}), "no adtn header"),
        ((2**63).to_bytes(8, "little") + b"{}", "claims 9223372036854775808 bytes"),
    ]:
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=message):
            adtn.load(path)
    with pytest.raises(FileFormatError, match="No such file"):
        adtn.load(tmp_path / "nothing")


def test_no_pickle_anywhere() -> None:
    root = Path(adtn.__file__).parent
    for folder in (root, Path(__import__("adtn_backends").__file__).parent):
        for path in folder.rglob("*.py"):
            text = path.read_text()
            assert "import pickle" not in text and "allow_pickle=True" not in text, path


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    adtn.save(path, GEN)
    old = path.read_bytes()
    big = GEN.with_params({k: x + 1e30 for k, x in GEN.params.items()})
    with pytest.raises(FileFormatError):
        adtn.save(path, big, "float16")
    assert path.read_bytes() == old


PRECISIONS = [Precision("int8"), Precision("int4", 32), Precision("int3", 10), Precision("int2"), Precision("bfloat16")]


@pytest.mark.parametrize("precision", [*PRECISIONS, Precision("float16"), Precision("float32")], ids=str)
@pytest.mark.parametrize(
    "base", [None, adtn.SeededBase(3), np.arange(4096.0).reshape(64, 64)], ids=["", "seeded", "given"]
)
def test_codes_are_stored_as_they_are(base, precision: Precision, tmp_path: Path) -> None:
    gen = adtn.Generator((64, 64), adtn.TTN(bond=4), base=base).rounded(precision)
    adtn.save(tmp_path / "q", gen)
    back = adtn.load(tmp_path / "q")
    assert back.precision == precision and back.nbytes == gen.nbytes
    assert {name: codes.data.tobytes() for name, codes in back.codes.items()} == {
        name: codes.data.tobytes() for name, codes in gen.codes.items()
    }
    assert back.weight().tobytes() == gen.weight().tobytes()
    assert to_bytes(back) == to_bytes(gen)
    again = structure_from_json(json.loads(json.dumps(structure_to_json(gen))))
    assert again.precision == precision and not any(x.any() for x in again.params.values())


def test_files_of_codes_are_small() -> None:
    layout = Layout((256, 512), ((256,), (512,)), (0, 1))
    gen = adtn.Generator((256, 512), adtn.Dense(), layout=layout).rounded(Precision("int4", 64))
    assert gen.nbytes == 256 * 512 // 2 + 256 * 8 * 2 + 256 * 8 // 2 + 1
    assert len(to_bytes(gen)) - gen.nbytes < 800, "the header"


def test_saving_in_a_precision_rounds(tmp_path: Path) -> None:
    gen = adtn.Generator((64, 64), adtn.TTN(bond=4))
    adtn.save(tmp_path / "a", gen, "int8")
    adtn.save(tmp_path / "b", gen, Precision("int8"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == to_bytes(gen.rounded(Precision("int8")))
    away = adtn.load(tmp_path / "a").weight() - gen.weight()
    assert 0 < np.linalg.norm(away) < 0.1 * np.linalg.norm(gen.weight())
    # as floats, decoded values are stored, and the generator is not a rounded one
    back = from_bytes(to_bytes(gen.rounded(Precision("int8")), "float32"))
    assert back.precision is None
    assert np.array_equal(back.weight(), gen.rounded(Precision("int8")).weight())


def test_codes_of_zeros() -> None:
    gen = adtn.Generator((8, 8), adtn.TTN(bond=2))
    zero = gen.with_params({name: np.zeros_like(x) for name, x in gen.params.items()})
    assert not from_bytes(to_bytes(zero, "int8")).weight().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("precision", value={"format": "int9"}), "does not describe"),
        (setter("precision", value={"format": "int4", "group": 7}), "does not describe.*expected"),
        (setter("precision", value=None), "does not describe"),
        (lambda header: header.pop("precision"), "U8"),
        (setter("layout", "shape", value=[32, 64]), "does not describe"),
    ],
)
def test_absurd_headers_of_codes(change, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        from_bytes(forged(change, GEN.rounded(Precision("int4"))))


def test_scales_that_are_not_finite_are_refused() -> None:
    rounded = adtn.Generator((64, 64), adtn.TTN(bond=4)).rounded(Precision("int4"))
    name = next(name for name, codes in rounded.codes.items() if codes.precision.is_integer)
    data = np.array(rounded.codes[name].data)
    data[:2] = 0xFF  # NaN in float16
    bad = rounded.with_codes(
        Precision("int4"), {**rounded.codes, name: Codes(rounded.codes[name].shape, Precision("int4"), data)}
    )
    with pytest.raises(FileFormatError, match="NaN or infinite"):
        from_bytes(to_bytes(bad))
