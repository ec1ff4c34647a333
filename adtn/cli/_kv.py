"""Caches of decoders: ``adtn kv calibrate | encode | decode | report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from .._files import check_writable
from ..errors import ADTNError
from ._names import function_of

if TYPE_CHECKING:
    from ..kv import Decoder

kv = typer.Typer(help="Store the caches of keys and values of a decoder in few bytes.", no_args_is_help=True)

Model = Annotated[
    str, typer.Argument(help="Hugging Face folder with a decoder, or MODULE:FACTORY that returns the model.")
]
Codec = Annotated[Path, typer.Argument(help="File of the codec.")]
Texts = Annotated[
    list[Path], typer.Option("--text", help="Text file, or token ids (.npy); may be repeated, and is mixed evenly.")
]
Length = Annotated[int, typer.Option(help="Tokens of a prefix.")]
Continuation = Annotated[int, typer.Option(help="Tokens that read each prefix.")]


@kv.command()
def calibrate(
    model: Model,
    text: Texts,
    out: Annotated[Path, typer.Option(help="File of the codec.")] = Path("codec.safetensors"),
    texts: Annotated[int, typer.Option(help="The number of pieces that are read.")] = 64,
    length: Length = 1024,
    continuation: Continuation = 128,
    kl: Annotated[float, typer.Option(help="Mean divergence of the next token, in nats.")] = 0.0065,
    layers_per_basis: Annotated[int, typer.Option(help="Neighbouring layers that share a basis; 0 for all.")] = 10,
    seed: int = 0,
) -> None:
    """Calibrate a codec on texts like those that will be stored."""
    from ..kv import KVCodec

    check_writable(out, "--out", "file")
    decoder = _decoder(model)
    codec = KVCodec.calibrate(
        decoder.model,
        _pieces(decoder, text, texts, length + continuation),
        kl=kl,
        layers_per_basis=layers_per_basis or None,
        continuation=continuation,
        seed=seed,
        say=lambda line: print(line, flush=True),
    )
    codec.save(out)
    part = 100 * codec.nbytes / decoder.nbytes
    print(f"The codec has {codec.nbytes:,} bytes, {part:.1f} % of the model, and is in {out}")


@kv.command()
def encode(
    model: Model,
    codec: Codec,
    text: Annotated[Path, typer.Option(help="Text file, or token ids (.npy).")],
    out: Annotated[Path, typer.Option(help="File of the prefix.")] = Path("prefix.parked"),
    step: Annotated[float, typer.Option(help="Of the quantisation, relative to the calibrated one.")] = 1.0,
) -> None:
    """Compute the cache of a text and store it."""
    check_writable(out, "--out", "file")
    own, decoder = _bound(model, codec)
    ids = _ids(decoder, text)
    parked = own.encode(decoder.prefill(ids), ids, step=step)
    parked.save(out)
    print(
        f"{parked.tokens:,} tokens: {parked.nbytes:,} bytes, {parked.bits_per_value:.3f} bits per value, "
        f"{parked.ratio:.1f} times smaller than bfloat16, in {out}"
    )


@kv.command()
def decode(
    model: Model,
    codec: Codec,
    prefix: Annotated[Path, typer.Argument(help="File of the prefix.")],
    prompt: Annotated[str | None, typer.Option(help="Text that follows the prefix.")] = None,
    new: Annotated[int, typer.Option(help="The number of tokens to generate.")] = 32,
) -> None:
    """Restore a prefix and let the model go on from it."""
    from ..kv import Parked

    own, decoder = _bound(model, codec)
    parked = Parked.load(prefix)
    cache = own.decode(parked)
    more = np.empty(0, np.int64) if prompt is None else decoder.tokens(prompt)
    if not len(more):
        cache.crop(-1)  # the model needs at least one token to go on from
    found = decoder.generate(cache, np.concatenate((parked.token_ids.astype(np.int64), more)), new)
    print(decoder.text(found))


@kv.command()
def report(
    model: Model,
    codec: Codec,
    text: Texts,
    texts: Annotated[int, typer.Option(help="The number of pieces that are read.")] = 8,
    length: Length = 1024,
    continuation: Continuation = 128,
    baselines: Annotated[bool, typer.Option(help="Measure what others would use, too.")] = True,
    out: Annotated[list[Path] | None, typer.Option(help="Also write .json or .html; may be repeated.")] = None,
) -> None:
    """Measure bytes against divergence, beside integers, rotated codes, low rank and a window."""
    from ..kv import kv_report

    for path in out or ():
        check_writable(path, "--out", "file")
    own, decoder = _bound(model, codec)
    found = kv_report(
        own,
        _pieces(decoder, text, texts, length + continuation),
        continuation=continuation,
        with_baselines=baselines,
        say=lambda line: print(line, flush=True),
    )
    print(found)
    for path in out or ():
        found.save(path)


def _decoder(model: str) -> Decoder:
    from ..kv import decoder_of

    return decoder_of(Path(model) if Path(model).is_dir() else function_of(model)())


def _bound(model: str, codec: Path) -> tuple[Any, Decoder]:
    from ..kv import KVCodec

    decoder = _decoder(model)
    return KVCodec.load(codec, decoder.model), decoder


def _ids(decoder: Decoder, path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        ids = np.load(path, allow_pickle=False)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ADTNError(f"{path} holds an array of shape {ids.shape} and dtype {ids.dtype}; expected token ids.")
        return ids
    return decoder.tokens(path.read_text(encoding="utf-8"))


def _pieces(decoder: Decoder, paths: list[Path], n: int, length: int) -> list[np.ndarray]:
    """Cut texts into pieces of equal length, and take ``n`` of them, evenly from all texts."""
    found: list[list[np.ndarray]] = []
    for path in paths:
        ids = _ids(decoder, path)
        whole = ids[: len(ids) // length * length].reshape(-1, length)
        if not len(whole):
            raise ADTNError(f"{path} has {len(ids):,} tokens; expected at least {length:,}, or a smaller --length.")
        share = -(-n // len(paths))
        at = np.unique(np.linspace(0, len(whole) - 1, min(share, len(whole))).astype(int))
        found.append([whole[k] for k in at])
    mixed = [own[k] for k in range(max(map(len, found))) for own in found if k < len(own)]
    return mixed[:n]
