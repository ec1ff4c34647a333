"""The codec of the caches of one model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from autoray import do

from .._checks import Range, checked
from .._files import read_header, read_whole
from .._typing import Array, Int
from ..errors import KVCacheError
from ._ans import Coded, ideal_bits
from ._basis import Basis
from ._calibrate import (
    Moments,
    Precision,
    Recipe,
    Weighting,
    active,
    bases_of,
    checked_texts,
    groups_of,
    magnitudes_of,
    moments_of,
    prefixes,
    to_host,
)
from ._coefficients import Magnitudes
from ._decoder import Decoder, States, decoder_of
from ._live import CODERS, LayerCode, LiveOptions
from ._order import Order
from ._pair import Pair
from ._parked import Coder, Parked, half, small_ids
from ._step import Divergence, step_for
from ._stored import Stored
from ._tables import grid_index, grid_value

_OF_BASIS = ("mean", "inverse", "components", "codes", "scales")
_OF_MAGNITUDES = ("indices", "parts")
_IN_HEADER = ("model", "layers", "groups", "step", "finest", "unit", "sinks")
_MAGNITUDE_TEXTS = 16  # from which magnitudes are estimated
_STEP_TEXTS = 4  # on which the step is chosen


@dataclass(frozen=True, kw_only=True)
class KVCodec(Stored):
    """A codec for the caches of one decoder.

    Parameters
    ----------
    model : str
        The digest of the model's parameters.
    layers : tuple of int
        The layers of the model that are coded.
    groups : tuple of tuple of int
        Positions in ``layers`` that share a basis.
    bases : Pair of tuple of Basis
        By group.
    magnitudes : Pair of tuple of Magnitudes
        By group.
    step : int
        The step that is used if no other is asked for, a point of the grid of steps.
    finest : int
        The finest step that is possible.
    unit : int
        Of the weights, a point of the same grid: with it the divergence per token that errors of coefficients cause is
        about half the sum of their squares.
    sinks : int
        The number of tokens at the beginning that are stored as they are.
    decoder : Decoder, optional
        The model.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.5)).eval()
    >>> texts = np.random.default_rng(0).integers(0, 40, (4, 96))
    >>> codec = KVCodec.calibrate(model, texts, continuation=32, kl=0.02)
    >>> cache = model(torch.tensor(texts[:1]), use_cache=True).past_key_values
    >>> parked = codec.encode(cache, texts[0], coder="rice")
    >>> parked.ratio > 1.0, codec.decode(parked).get_seq_length()
    (True, 96)

    References
    ----------
    Rotation undone, Karhunen-Loeve bases over layers and sinks: KVTC (2025), arXiv:2511.01815. Weights by second
    moments of gradients and prediction by token ids are our own.
    """

    file_kind: ClassVar[str] = "cache codec"
    file_format: ClassVar[int] = 1

    model: str
    layers: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    bases: Pair[tuple[Basis, ...]]
    magnitudes: Pair[tuple[Magnitudes, ...]]
    step: int
    finest: int
    unit: int
    sinks: int
    decoder: Decoder | None = field(default=None, repr=False, compare=False)

    @classmethod
    @checked(KVCacheError)
    def calibrate(
        cls,
        model: Any,
        token_ids: Any,
        *,
        kl: Annotated[float, Range(0, above=True)] = 0.0065,
        layers_per_basis: Annotated[int, Range(1)] | None = 10,
        continuation: Annotated[int, Range(1)] = 128,
        samples: Annotated[int, Range(1)] = 2,
        weighting: Weighting = "full",
        sinks: Annotated[int, Range(0)] = 4,
        finest: Annotated[float, Range(0, 1, above=True)] = 0.7,
        precision: Precision = "int8",
        seed: Annotated[int, Range(0)] = 0,
        say: Callable[[str], None] = lambda line: None,
    ) -> KVCodec:
        """Calibrate a codec on texts.

        Parameters
        ----------
        model : torch.nn.Module
            A decoder of transformers whose cache is a ``DynamicCache``.
        token_ids : array, (texts, length), or list of arrays
            Texts of about the length of the prefixes that will be coded, and the ``continuation``. Mix all kinds of
            text that are expected: what is missing costs bits and accuracy. 64 texts of 1,152 tokens are much better
            than 4.
        kl : float
            The mean divergence of the next token, in nats, that the step is chosen for, on a few of the texts.
        layers_per_basis : int, optional
            The number of neighbouring layers that share a basis; ``None`` for all. More need fewer bits per token and a
            larger codec.
        continuation : int
            The number of tokens at the end of each text that read the others.
        samples : int
            The number of gradients per text.
        weighting : {"full", "scalar", "none"}
            How errors count: by the second moments of gradients, their traces, or all alike.
        sinks : int
            The number of tokens at the beginning that are stored as they are.
        finest : float
            The finest step the codec serves for, relative to that for ``kl``.
        precision : {"int8", "float16"}
            Of the components in the codec's file; with ``"int8"`` those of large coefficients still have 16 bits.
        seed : int
            Of the labels that are drawn.
        say : callable
            Receives lines of progress.

        Raises
        ------
        KVCacheError
            If the model is not such a decoder, or texts are too short.
        """
        decoder = decoder_of(model)
        texts = checked_texts(token_ids, continuation, sinks)
        groups = groups_of(len(decoder.layers), layers_per_basis)
        recipe = Recipe(
            continuation=continuation,
            samples=samples,
            weighting=weighting,
            sinks=sinks,
            seed=seed,
            precision=precision,
            say=say,
        )
        moments = moments_of(decoder, texts, groups, recipe)
        return cls.from_moments(decoder, moments, groups, texts, recipe, kl=kl, finest=finest)

    @classmethod
    def from_moments(
        cls,
        decoder: Decoder,
        moments: Pair[Moments],
        groups: tuple[tuple[int, ...], ...],
        texts: Sequence[Int[np.ndarray, " n"]],
        recipe: Recipe,
        *,
        kl: float,
        finest: float,
    ) -> KVCodec:
        """Make a codec of moments that are known; see :meth:`calibrate`."""
        bases, unit = bases_of(moments, groups, recipe.weighting)
        first = prefixes(decoder, texts[:_MAGNITUDE_TEXTS], recipe.continuation, recipe.sinks)
        whole = cls(
            model=decoder.digest,
            layers=decoder.layers,
            groups=groups,
            bases=bases.map(tuple),
            magnitudes=magnitudes_of(bases, groups, first).map(tuple),
            step=0,
            finest=-(1 << 14),
            unit=unit,
            sinks=recipe.sinks,
            decoder=decoder,
        )
        recipe.say("choosing the step")
        measure = Divergence.of(decoder, texts[-_STEP_TEXTS:], recipe.continuation)
        # errors of rounding by one step have a mean square of a twelfth
        values = len(texts[-1]) * sum(m.mean.size for m in moments)
        start = int(grid_index(np.sqrt(np.array(24.0 * kl / values)))) - unit
        step = step_for(kl, lambda index: measure(lambda states, ids: whole._recoded(states, ids, index)), start)
        found = replace(whole, step=step)
        return found._without_inactive(step + int(grid_index(np.array(finest))), recipe.precision)

    def _without_inactive(self, finest: int, precision: Precision) -> KVCodec:
        """Leave out components that have no symbols at the finest step."""
        pairs = Pair(
            k=[active(basis, magnitudes, finest, precision) for basis, magnitudes, _ in self._parts("k")],
            v=[active(basis, magnitudes, finest, precision) for basis, magnitudes, _ in self._parts("v")],
        )
        return replace(
            self,
            bases=pairs.map(lambda own: tuple(basis for basis, _ in own)),
            magnitudes=pairs.map(lambda own: tuple(magnitudes for _, magnitudes in own)),
            finest=finest,
        )

    @checked(KVCacheError)
    def encode(
        self,
        cache: Any,
        token_ids: Any,
        *,
        step: Annotated[float, Range(0, above=True)] | None = None,
        order: Literal["ids", "natural"] = "ids",
        coder: Coder = "ans",
    ) -> Parked:
        """Encode the exact cache of a prefix.

        Parameters
        ----------
        cache : transformers.DynamicCache
            Of one sequence; it is not changed.
        token_ids : array, (tokens,)
            The text of the prefix.
        step : float, optional
            Of the quantisation, relative to the calibrated one: 2.0 is coarser, 0.5 finer.
        order : {"ids", "natural"}
            Whether earlier tokens of the same id predict later ones.
        coder : {"ans", "rice"}
            Entropy coding by ``constriction``, or codes of whole bits, which need no package.

        Raises
        ------
        KVCacheError
            If the cache is not one of this model, or does not fit the text.
        """
        decoder = self._bound
        states = decoder.states(cache)
        return self.encode_states(states, token_ids, step=step, order=order, coder=coder, others=decoder.others(cache))

    @checked(KVCacheError)
    def encode_states(
        self,
        states: States,
        token_ids: Any,
        *,
        step: Annotated[float, Range(0, above=True)] | None = None,
        order: Literal["ids", "natural"] = "ids",
        coder: Coder = "ans",
        others: Mapping[str, np.ndarray] | None = None,
    ) -> Parked:
        """Encode keys before rotation, and values, ``(tokens, layers, heads, channels)``, of any framework."""
        ids = small_ids(token_ids)
        self._check(states, ids)
        index = self._step(step)
        sinks = min(self.sinks, len(ids))
        ordered = self._order(ids, order == "ids")
        symbols: list[np.ndarray] = []
        tables: list[np.ndarray] = []
        for kind, x in (("k", states.k), ("v", states.v)):
            for basis, magnitudes, group in self._parts(kind):
                c = to_host(basis.coefficients(x[sinks:][:, list(group)]))
                symbols.append(magnitudes.encode(c, ordered, index)[0])
                tables.append(magnitudes.tables(index)[ordered.classes])
        return Parked(
            codec=self.digest,
            token_ids=ids,
            shapes=states.map(lambda x: tuple(int(n) for n in x.shape[1:])),
            sinks=states.map(lambda x: half(to_host(x[:sinks]))),
            coded=_encoded(symbols, tables, coder),
            others={name: half(x) if x.dtype == np.float32 else x for name, x in (others or {}).items()},
            step=index,
            by_id=order == "ids",
            coder=coder,
        )

    def decode(self, parked: Parked, *, device: Any = None) -> Any:
        """Return the cache, with which ``generate`` goes on.

        Parameters
        ----------
        parked : Parked
        device : optional
            Where its arrays are, such as ``"cpu"``; the device of the model if it is not given.

        Raises
        ------
        KVCacheError
            If the prefix was coded by another codec, or there is no such device.
        FileFormatError
            If its content was modified.
        """
        decoder = self._bound
        states = self.decode_states(parked, like=decoder.like)
        return decoder.cache(states, {name: np.asarray(x) for name, x in parked.others.items()}, device=device)

    def decode_states(self, parked: Parked, like: Array | None = None) -> States:
        """Return keys before rotation, and values, as float32 arrays of the framework and device of ``like``."""
        if parked.codec != self.digest:
            raise KVCacheError(
                f"The prefix was coded by the codec {parked.codec[:12]}; this is {self.digest[:12]}. Load the codec "
                "that was used, or encode the prefix again."
            )
        sinks = len(parked.sinks.k)
        ordered = self._order(parked.token_ids, parked.by_id)
        tables = [
            magnitudes.tables(parked.step)[ordered.classes]
            for kind in ("k", "v")
            for _, magnitudes, _ in self._parts(kind)
        ]
        symbols = iter(_decoded(parked.coded, tables, parked.coder))
        place = np.empty(0, np.float32) if like is None else like
        found: list[Array] = []
        for kind, first in (("k", parked.sinks.k), ("v", parked.sinks.v)):
            own = [
                basis.states(do("asarray", magnitudes.decode(next(symbols), ordered, parked.step), like=place))
                for basis, magnitudes, _ in self._parts(kind)
            ]
            rest = do("concatenate", own, axis=1)
            found.append(do("concatenate", [do("asarray", first.astype(np.float32), like=place), rest], axis=0))
            assert sinks == len(first)
        return Pair(k=found[0], v=found[1])

    def live(self, *, step: float | None = None, **options: Any) -> Any:
        """Make an empty cache that codes its old tokens while a model generates.

        The last tokens, and the sinks, are held as they are; older ones are coded layer by layer, in chunks. Each
        forward pass decodes all chunks of a layer while that layer attends, so a long cache costs time at every token:
        this saves memory, not time. With ``cached=True`` the decoded states are held instead, which saves neither and
        shows what a coded cache would answer.

        Parameters
        ----------
        step : float, optional
            Of the quantisation, relative to the calibrated one.
        **options
            Those of :class:`adtn.kv.LiveOptions`: ``window``, ``chunk``, ``coder``, ``cached``, ``offloading``, and
            ``sinks``, by default those of the codec.

        Returns
        -------
        transformers.Cache
            For ``past_key_values``. It has ``nbytes``, ``bits_per_value`` and ``compressed_bits_per_value``, and
            listens to the rotations of the model until it is deleted, or ``close()`` is called.

        Raises
        ------
        KVCacheError
            If layers share bases, or the rotations of the model change with the length of the text.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
        ... )
        >>> model = LlamaForCausalLM(config).eval()
        >>> texts = np.random.default_rng(0).integers(0, 40, (4, 96))
        >>> codec = KVCodec.calibrate(model, texts, continuation=32, kl=0.02, layers_per_basis=1)
        >>> cache = codec.live(window=16, chunk=32, coder="rice")
        >>> out = model.generate(torch.tensor(texts[:1]), past_key_values=cache, max_new_tokens=4, do_sample=False)
        >>> cache.get_seq_length(), cache.compressed_bits_per_value < 8.0
        (99, True)
        """
        decoder = self._bound
        if any(len(group) > 1 for group in self.groups):
            raise KVCacheError(
                f"Got a codec whose bases are shared by up to {max(map(len, self.groups))} layers; a live cache codes "
                "layer by layer. Calibrate with layers_per_basis=1."
            )
        chosen: dict[str, Any] = {"sinks": self.sinks, **options}
        own, index = LiveOptions(**chosen), self._step(step)
        codes = [
            LayerCode(
                bases=Pair(k=self.bases.k[g], v=self.bases.v[g]),
                magnitudes=Pair(k=self.magnitudes.k[g], v=self.magnitudes.v[g]),
                step=index,
                coder=own.coder,
            )
            for g in range(len(self.groups))
        ]
        return decoder.live(codes, own)

    def shares(self, states: States, token_ids: Any) -> dict[str, float]:
        """Return the parts of the coded bits of a prefix by kind and layers, at the calibrated step."""
        ids = small_ids(token_ids)
        self._check(states, ids)
        ordered, bits = self._order(ids, True), dict[str, float]()
        for kind, what, x in (("k", "keys", states.k), ("v", "values", states.v)):
            for basis, magnitudes, group in self._parts(kind):
                c = to_host(basis.coefficients(x[min(self.sinks, len(ids)) :][:, list(group)]))
                symbols, tables = magnitudes.encode(c, ordered, self.step)[0], magnitudes.tables(self.step)
                name = f"{what} of layers {self.layers[group[0]]} to {self.layers[group[-1]]}"
                bits[name] = ideal_bits([symbols], [tables[ordered.classes]])
        total = sum(bits.values()) or 1.0
        return {name: own / total for name, own in bits.items()}

    def _recoded(self, states: States, ids: Int[np.ndarray, " tokens"], index: int) -> States:
        """Return states as they are after coding, without making bytes of them."""
        sinks = min(self.sinks, len(ids))
        ordered = self._order(ids, True)

        def of(kind: str, x: Array) -> Array:
            own = [
                basis.states(do("asarray", magnitudes.encode(c, ordered, index)[1], like=x))
                for basis, magnitudes, group in self._parts(kind)
                for c in [to_host(basis.coefficients(x[sinks:][:, list(group)]))]
            ]
            return do("concatenate", [x[:sinks], do("concatenate", own, axis=1)], axis=0)

        return Pair(k=of("k", states.k), v=of("v", states.v))

    def _parts(self, kind: str) -> list[tuple[Basis, Magnitudes, tuple[int, ...]]]:
        bases, magnitudes = getattr(self.bases, kind), getattr(self.magnitudes, kind)
        return list(zip(bases, magnitudes, self.groups, strict=True))

    def _order(self, ids: Int[np.ndarray, " tokens"], by_id: bool) -> Order:
        rest = ids[min(self.sinks, len(ids)) :]
        return Order.by_id(rest) if by_id else Order.natural(len(rest))

    def _step(self, relative: float | None) -> int:
        if relative is None:
            return self.step
        index = self.step + int(grid_index(np.array(relative)))
        if index < self.finest:
            least = grid_value(self.finest - self.step)
            raise KVCacheError(
                f"Got step={relative:g}; the components of this codec serve for steps from {least:.3g} times the "
                "calibrated one. Calibrate with a smaller divergence."
            )
        return index

    def _check(self, states: States, ids: Int[np.ndarray, " tokens"]) -> None:
        for kind, x in (("k", states.k), ("v", states.v)):
            heads, channels = getattr(self.bases, kind)[0].mean.shape[1:]
            expected = (len(ids), len(self.layers), heads, channels)
            if tuple(x.shape) != expected:
                raise KVCacheError(
                    f"Got states of shape {tuple(x.shape)} for {len(ids)} token ids; expected {expected}: tokens, "
                    "layers, heads, channels."
                )

    @property
    def _bound(self) -> Decoder:
        if self.decoder is None:
            raise KVCacheError("This codec has no model. Load it with KVCodec.load(path, model=model).")
        return self.decoder

    @property
    def relative_finest(self) -> float:
        """The finest step, relative to the calibrated one."""
        return grid_value(self.finest - self.step)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 digest of the file."""
        return str((read_header(self.to_bytes(), self.file_kind, self.file_format) or {})["sha256"])

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any = None) -> KVCodec:
        """Read a file that :meth:`save` has written.

        Parameters
        ----------
        path : path
        model : optional
            The decoder; without it only arrays can be coded.

        Raises
        ------
        FileFormatError
            If the file is damaged, or is something else.
        KVCacheError
            If the codec is that of another model.
        """
        codec = cls.from_bytes(read_whole(path, "a cache codec"))
        return codec if model is None else codec.bind(model)

    def bind(self, model: Any) -> KVCodec:
        """Return the codec with the model of which it is.

        Raises
        ------
        KVCacheError
            If the codec is that of another model.
        """
        decoder = decoder_of(model)
        if decoder.digest != self.model:
            raise KVCacheError(
                f"The codec is that of a model with the digest {self.model[:12]}; this {type(model).__name__} has "
                f"{decoder.digest[:12]}. Parameters in another dtype are another model: load it as for the "
                "calibration, or calibrate again."
            )
        return replace(self, decoder=decoder)

    def _content(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays: dict[str, np.ndarray] = {}
        for kind in ("k", "v"):
            for g, (basis, magnitudes, _) in enumerate(self._parts(kind)):
                arrays |= {f"{kind}.{g}.{name}": getattr(basis, name) for name in _OF_BASIS}
                arrays |= {f"{kind}.{g}.{name}": getattr(magnitudes, name) for name in _OF_MAGNITUDES}
        return arrays, {name: getattr(self, name) for name in _IN_HEADER}

    @classmethod
    def _of_content(cls, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> KVCodec:
        groups = tuple(tuple(group) for group in header["groups"])

        def own(kind: str, names: Sequence[str], make: Any) -> tuple[Any, ...]:
            return tuple(make(**{n: arrays[f"{kind}.{g}.{n}"] for n in names}) for g in range(len(groups)))

        return cls(
            model=str(header["model"]),
            layers=tuple(header["layers"]),
            groups=groups,
            bases=Pair(k=own("k", _OF_BASIS, Basis), v=own("v", _OF_BASIS, Basis)),
            magnitudes=Pair(k=own("k", _OF_MAGNITUDES, Magnitudes), v=own("v", _OF_MAGNITUDES, Magnitudes)),
            step=int(header["step"]),
            finest=int(header["finest"]),
            unit=int(header["unit"]),
            sinks=int(header["sinks"]),
        )


def _encoded(symbols: Sequence[np.ndarray], tables: Sequence[np.ndarray], coder: Coder) -> Coded:
    encode = CODERS[coder][0]
    return encode(np.concatenate([x.ravel() for x in symbols]), np.concatenate([x.ravel() for x in tables]))


def _decoded(coded: Coded, tables: Sequence[np.ndarray], coder: Coder) -> list[np.ndarray]:
    flat = CODERS[coder][1](coded, np.concatenate([x.ravel() for x in tables]))
    sizes = np.cumsum([x.size for x in tables])[:-1]
    return [part.reshape(x.shape) for part, x in zip(np.split(flat, sizes), tables, strict=True)]
