"""Files of generators: safetensors with a JSON header, a format version and a digest of every byte."""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import _files
from .._checks import checked
from .._plugins import UnregisteredError
from ..errors import ADTNError, FileFormatError
from ..generator import Generator
from ..layout import Layout, Permutation, decode_permutation, encode_permutation
from ..precision import Codes, Precision
from ..topology import IdentityBase, SeededBase, topology_from_json, topology_to_json
from ..weight import BASE, BASE_SCALE

FORMAT = 4
_WITH_ENTROPY_CODES = 3  # the formats of generators without permutations and ordered columns: with entropy codes,
_WITH_INTEGERS = 2  # with other integers,
_WITHOUT_CODES = 1  # and not rounded, which an older adtn can read
_ORDER = "permutation.{}"
"""The name of the tensor of bytes that holds the permutation of an axis."""

StoreDtype = Literal["float64", "float32", "bfloat16", "float16", "int8", "int4", "int3", "int2"]
_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
STRUCTURES = "adtn_generators"
"""The entry of a Hugging Face configuration that holds the structures of generators by name of the weight."""


@checked(FileFormatError)
def save(path: str | os.PathLike[str], generator: Generator, dtype: StoreDtype | Precision | None = None) -> None:
    """Write a generator to a file, atomically.

    Parameters
    ----------
    path : path
        The path of the file, which by convention ends in ``.safetensors``.
    generator : Generator
        The generator.
    dtype : {"float64", "float32", "bfloat16", "float16", "int8", "int4", "int3", "int2"} or Precision, optional
        The dtype of the stored parameters; by default, that of the generator, or the codes of a rounded one. Half
        precisions round to nearest even; integers and a :class:`Precision` are those of :meth:`Generator.rounded`.

    Raises
    ------
    FileFormatError
        If a parameter is not finite in that dtype.
    OutputError
        If the file cannot be written; an existing file is unchanged then.

    Examples
    --------
    >>> import adtn, tempfile, os
    >>> gen = adtn.Generator((64, 64), adtn.TTN(bond=2), layout=adtn.Layout.of((64, 64), leg=8))
    >>> path = os.path.join(tempfile.mkdtemp(), "layer.safetensors")
    >>> adtn.save(path, gen)
    >>> bool((adtn.load(path).weight() == gen.weight()).all())
    True
    """
    _files.write_bytes(path, to_bytes(generator, dtype))


def to_bytes(generator: Generator, dtype: StoreDtype | Precision | None = None) -> bytes:
    """Return the content of the file that :func:`save` writes."""
    from safetensors import TensorSpec, serialize

    if isinstance(dtype, Precision) or (dtype is not None and dtype.startswith("int")):
        generator, dtype = _rounded(generator, dtype), None
    store = dtype or generator.dtype
    if store not in _DTYPES:
        raise FileFormatError(f"Got dtype={store!r}; expected one of {', '.join(_DTYPES)}.")
    header = {"format": _WITHOUT_CODES, **structure_to_json(generator), "sha256": _files.NO_DIGEST}
    if generator.codes and dtype is None:
        header["format"] = _format_of_codes(generator.precision)
        tensors = {name: (np.array(codes.data), "uint8") for name, codes in generator.codes.items()}
    else:
        header.pop("precision", None)
        header["stored"] = store
        tensors = {name: (_packed(name, x, store), store) for name, x in generator.stored.items()}
    if isinstance(generator.base, np.ndarray):
        tensors[BASE] = np.ascontiguousarray(generator.base, dtype="<f8"), "float64"
    if generator.permutations:  # as bytes, which need not be text
        orders = {k: encode_permutation(p) for k, p in enumerate(generator.permutations) if p is not None}
        header |= {"format": FORMAT, "permutations": [k in orders for k in range(len(generator.shape))]}
        tensors |= {_ORDER.format(k): (np.frombuffer(data, np.uint8), "uint8") for k, data in orders.items()}
    # the specs point to the arrays in ``tensors``, which must live until serialize is done
    specs = {
        name: TensorSpec(dtype=kind, shape=x.shape, data_ptr=x.ctypes.data, data_len=x.nbytes)
        for name, (x, kind) in tensors.items()
    }
    return _files.sealed(serialize(specs, {_files.KEY: json.dumps(header, sort_keys=True)}))


def _format_of_codes(precision: Precision | None) -> int:
    if precision is not None and precision.ordered:
        return FORMAT
    return _WITH_ENTROPY_CODES if precision is not None and precision.is_coded else _WITH_INTEGERS


def _rounded(generator: Generator, dtype: str | Precision) -> Generator:
    try:
        return generator.rounded(dtype if isinstance(dtype, Precision) else Precision(dtype))  # type: ignore[arg-type]
    except ADTNError as error:
        raise FileFormatError(str(error)) from error


def structure_to_json(generator: Generator) -> dict[str, Any]:
    """Describe a generator without its parameters as plain values."""
    layout, base = generator.layout, None
    if isinstance(generator.base, SeededBase):
        base = {"kind": "seeded", "seed": generator.base.seed, "distribution": generator.base.distribution}
    elif isinstance(generator.base, IdentityBase):
        base = {"kind": "identity"}
    elif isinstance(generator.base, np.ndarray):
        base = {"kind": "given", "dtype": str(generator.base.dtype)}
    texts = [None if p is None else b64encode(encode_permutation(p)).decode() for p in generator.permutations]
    return {
        "topology": topology_to_json(generator.topology),
        "layout": {
            "shape": layout.shape,
            "factors": layout.factors,
            "order": layout.order,
            "max_padding": layout.max_padding,
        },
        "dtype": generator.dtype,
        "scale": generator.scale.hex(),
        "base": base,
        **({"permutations": texts} if texts else {}),
        **({} if generator.precision is None else {"precision": generator.precision.to_json()}),
    }


@checked(FileFormatError)
def load(path: str | os.PathLike[str]) -> Generator:
    """Read a generator from a file.

    Nothing larger than the file itself is allocated: frozen cores that follow from a rule are made, and contractions
    are planned, when the weight is first needed.

    Parameters
    ----------
    path : path
        A file that :func:`save` wrote.

    Returns
    -------
    Generator
        The generator, with bit-equal parameters, whatever backend wrote them.

    Raises
    ------
    FileFormatError
        If the file is truncated, modified, not written by adtn, of a newer version, or contains parameters that are not
        finite.

    Examples
    --------
    >>> import adtn, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "layer.safetensors")
    >>> adtn.save(path, adtn.Generator((64, 64), adtn.MPO(bond=2)))
    >>> adtn.load(path)
    Generator(64x64, MPO(bond=2), legs=(8, 8, 8, 8), params=256, ratio=16x)
    """
    try:
        size = Path(path).stat().st_size
        if size < 8:
            raise FileFormatError(f"It has only {size} bytes.")
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size - 8, _files.MAX_HEADER):
                raise FileFormatError(f"Its header claims {length} bytes in a file of {size}.")
            data = length.to_bytes(8, "little") + file.read()
    except OSError as error:
        raise FileFormatError(f"Cannot read {path}: {error.strerror}.") from error
    except FileFormatError as error:
        raise FileFormatError(f"Got {path}, which is not an adtn file: {error} Get the file again.") from None
    try:
        return from_bytes(data)
    except FileFormatError as error:
        has_advice = "Upgrade" in str(error) or "again" in str(error) or isinstance(error.__cause__, UnregisteredError)
        advice = "" if has_advice else " Get the file again."
        raise FileFormatError(f"{path}: {error}{advice}") from error.__cause__


def from_bytes(data: bytes) -> Generator:
    """Read a generator from the content of a file; see :func:`load`."""
    header = read_header(data)
    try:
        generator = _generator(header, read_tensors(data, codes=bool({"precision", "permutations"} & set(header))))
        for name, x in generator.stored.items():
            if not np.isfinite(x).all():
                raise FileFormatError(f"Got NaN or infinite entries in parameter {name!r}; expected finite ones.")
        return generator
    except FileFormatError:
        raise
    except UnregisteredError as error:
        raise FileFormatError(f"The file is intact, but {str(error)[0].lower()}{str(error)[1:]}") from error
    except Exception as error:  # a header may contain anything
        raise FileFormatError(f"The header does not describe a generator ({error}). Get the file again.") from error


def structure_from_json(header: Mapping[str, Any]) -> Generator:
    """Make the generator that :func:`structure_to_json` described, with zeros as parameters.

    Raises
    ------
    FileFormatError
        If the values do not describe a generator.
    """
    try:
        return _generator(header, None)
    except UnregisteredError as error:
        raise FileFormatError(str(error)) from error
    except Exception as error:
        raise FileFormatError(f"These values do not describe a generator ({error}); get the file again.") from error


def _generator(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None) -> Generator:
    layout = header["layout"]
    lay = Layout(
        _ints(layout["shape"]),
        tuple(_ints(f) for f in layout["factors"]),
        _ints(layout["order"]),
        layout["max_padding"],
    )
    topology = topology_from_json(header["topology"])
    needed = {c.param: c.shape for s in topology.segments(lay) for c in s.cores if c.trainable or c.init == "given"}
    if (header["base"] or {}).get("kind") in ("seeded", "identity"):
        needed[BASE_SCALE] = ()
    precision = Precision.from_json(header["precision"]) if "precision" in header else None
    codes: dict[str, Codes] = {}
    if tensors is None:
        tensors = {BASE: np.zeros(lay.shape), **{name: np.zeros(shape) for name, shape in needed.items()}}
        if precision is not None:
            codes = {name: Codes.blank(shape, precision.of(shape)) for name, shape in needed.items()}
    elif precision is not None:
        codes = {name: Codes(shape, precision.of(shape), tensors[name]) for name, shape in needed.items()}
        tensors = {**tensors, **{name: np.zeros(shape) for name, shape in needed.items()}}
    for name, shape in needed.items():
        stored_shape = tensors[name].shape if name in tensors else None
        if stored_shape != shape:
            raise FileFormatError(
                f"Got shape {stored_shape} for tensor {name!r}; the topology requires {shape}. Get the file again."
            )
    base = header["base"]
    if base is not None:
        read: dict[str, Callable[[], Any]] = {
            "given": lambda: tensors[BASE].astype(header["base"]["dtype"]),
            "seeded": lambda: SeededBase(header["base"]["seed"], header["base"]["distribution"]),
            "identity": IdentityBase,
        }
        base = read[base["kind"]]()
    given = header.get("permutations") or []
    orders = [_order(k, order, n, tensors) for k, (order, n) in enumerate(zip(given, lay.shape, strict=bool(given)))]
    bytes_of_orders = {_ORDER.format(k) for k, order in enumerate(given) if order is True}
    generator = Generator(
        lay.shape,
        topology,
        layout=lay,
        scale=float.fromhex(header["scale"]),
        base=base,
        dtype=header["dtype"],
        params={name: x for name, x in tensors.items() if name != BASE and name not in bytes_of_orders},
        permutations=orders or None,
    )
    return generator if precision is None else generator.with_codes(precision, codes)


def _order(axis: int, given: Any, n: int, tensors: Mapping[str, np.ndarray]) -> Permutation | None:
    """Return a permutation: text in descriptions, bytes beside them in files, and numbers before format 4."""
    if given is None or given is False:
        return None
    if given is True:
        return decode_permutation(tensors[_ORDER.format(axis)].tobytes(), n)
    return decode_permutation(b64decode(given), n) if isinstance(given, str) else Permutation(_ints(given))


def read_header(data: bytes) -> dict[str, Any]:
    """Read and verify the header in the content of a file.

    Raises
    ------
    FileFormatError
        See :func:`load`.
    """
    header = _files.read_header(data, "generator", FORMAT)
    if header is None:
        raise FileFormatError("This is not an adtn file: it has no adtn header. Write one with adtn.save.")
    return header


def _ints(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or any(not isinstance(v, int) or isinstance(v, bool) for v in values):
        raise FileFormatError(f"Expected a list of integers, got {str(values)[:80]!r}.")
    return tuple(values)


def _packed(name: str, x: np.ndarray, store: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        wide = np.asarray(x, dtype=np.float32 if store == "bfloat16" else store)
    if not np.isfinite(wide).all():
        raise FileFormatError(f"Parameter {name!r} is not finite in {store}; repair it, or store float32.")
    raw = _to_bfloat16(wide).reshape(x.shape) if store == "bfloat16" else wide.astype(wide.dtype.newbyteorder("<"))
    return np.array(raw, order="C")


def _to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Return the upper halves of float32 words, rounded to nearest even."""
    words = np.ascontiguousarray(x, dtype="<f4").reshape(-1).view("<u4")
    return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype("<u2")


def read_tensors(data: bytes, *, codes: bool = False, others: bool = False) -> dict[str, np.ndarray]:
    """Read all tensors of a safetensors file; bfloat16 is converted to float32, and bytes are read if they are codes.

    Tensors of other dtypes are left out if there may be ``others``.

    Raises
    ------
    FileFormatError
        If it is damaged or contains other dtypes.
    """
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(data)
    except SafetensorError as error:
        raise FileFormatError(f"The file is damaged ({error}). Get it again.") from error
    out: dict[str, np.ndarray] = {}
    for name, info in tensors:
        raw, shape, code = bytes(info["data"]), tuple(info["shape"]), info["dtype"]
        if code == "BF16":
            x = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        elif code == "U8" and codes:
            x = np.frombuffer(raw, np.uint8)
        elif code in ("F64", "F32", "F16"):
            x = np.frombuffer(raw, f"<f{int(code[1:]) // 8}")
        elif others:
            continue
        else:
            raise FileFormatError(
                f"Got dtype {code} for tensor {name!r}; expected one of {', '.join(_DTYPES.values())}."
            )
        out[name] = x.reshape(shape)
    return out
