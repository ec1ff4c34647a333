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
from ._calibrate import Moments, Precision, Recipe, Weighting, checked_texts, groups_of, moments_of, to_host
from ._code import Places, StatesCode
from ._decoder import Decoder, States, decoder_of
from ._fit import fitted
from ._live import LayerCode, LiveOptions
from ._order import Order
from ._pair import Pair
from ._parked import Coder, Parked, Rounded, half, small_ids
from ._stored import Stored
from ._tables import FIRST, grid_index, grid_value

_IN_HEADER = ("step", "finest", "unit", "sinks")


@dataclass(frozen=True, kw_only=True)
class KVCodec(Stored):
    """A codec for the caches of one decoder.

    Parameters
    ----------
    model : str
        The digest of the model's parameters.
    layers : tuple of int
        The layers of the model that are coded.
    code : StatesCode
        Bases and magnitudes of groups of these layers.
    step : int
        The step that is used if no other is asked for, a point of the grid of steps.
    finest : int
        The finest step that is possible.
    unit : int
        Of the weights, a point of the same grid: with it the divergence per token that errors of coefficients cause is
        about half the sum of their squares.
    sinks : int
        The number of tokens at the beginning that are stored in 8 bits.
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
    Rotation undone, Karhunen-Loeve bases over layers and sinks: KVTC (2025), arXiv:2511.01815. The rest is our own.
    """

    file_kind: ClassVar[str] = "cache codec"
    file_format: ClassVar[int] = 2  # 1: without shifts and least

    model: str
    layers: tuple[int, ...]
    code: StatesCode
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
        least: Annotated[float, Range(0.125, 1)] = 0.125,
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
            The number of tokens at the beginning that are stored in 8 bits.
        finest : float
            The finest step the codec serves for, relative to that for ``kl``.
        precision : {"int4", "int8", "float16"}
            Of the components in the codec's file; with ``"int8"`` those of large coefficients still have 16 bits, with
            ``"int4"`` those of the smallest ones 4.
        least : float
            Coefficients of a smaller mean magnitude, in steps, are left out. 0.25 makes the codec a fifth smaller.
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
            least=int(grid_index(np.array(least))),
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
        code, step, finest_step, unit = fitted(decoder, moments, groups, texts, recipe, kl, finest)
        return cls(
            model=decoder.digest,
            layers=decoder.layers,
            code=code,
            step=step,
            finest=finest_step,
            unit=unit,
            sinks=recipe.sinks,
            decoder=decoder,
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
        finer_at_end: bool = True,
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
            Asymmetric numeral systems, or Golomb-Rice codes, which are codes of whole bits.
        finer_at_end : bool
            Whether tokens near the end have finer steps than those far from it, which matter less to what follows. Turn
            it off for a prefix of which only the beginning may be used.

        Raises
        ------
        KVCacheError
            If the cache is not one of this model, or does not fit the text.
        """
        decoder = self._bound
        states = decoder.states(cache)
        return self.encode_states(
            states,
            token_ids,
            step=step,
            order=order,
            coder=coder,
            finer_at_end=finer_at_end,
            others=decoder.others(cache),
        )

    @checked(KVCacheError)
    def encode_states(
        self,
        states: States,
        token_ids: Any,
        *,
        step: Annotated[float, Range(0, above=True)] | None = None,
        order: Literal["ids", "natural"] = "ids",
        coder: Coder = "ans",
        finer_at_end: bool = True,
        others: Mapping[str, np.ndarray] | None = None,
    ) -> Parked:
        """Encode keys before rotation, and values, ``(tokens, layers, heads, channels)``, of any framework."""
        ids = small_ids(token_ids)
        self.code.check(states, len(ids))
        sinks = min(self.sinks, len(ids))
        places = self._places(ids, self._step(step), order == "ids", is_even=not finer_at_end)
        return Parked(
            codec=self.digest,
            token_ids=ids,
            shapes=states.map(lambda x: tuple(int(n) for n in x.shape[1:])),
            sinks=states.map(lambda x: Rounded.of(to_host(x[:sinks]))),
            coded=self.code.encode(states.map(lambda x: x[sinks:]), places, coder),
            others={name: half(x) if x.dtype == np.float32 else x for name, x in (others or {}).items()},
            step=places.step,
            by_id=order == "ids",
            is_even=places.is_even,
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
        places = self._places(parked.token_ids, parked.step, parked.by_id, is_even=parked.is_even)
        place = np.empty(0, np.float32) if like is None else like
        coded = self.code.decode(parked.coded, places, parked.coder, place)

        def whole(first: Rounded, rest: Array) -> Array:
            return do("concatenate", [do("asarray", first.values, like=place), rest], axis=0)

        return Pair(k=whole(parked.sinks.k, coded.k), v=whole(parked.sinks.v, coded.v))

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
        >>> _ = torch.manual_seed(0)  # the model may end its text at once otherwise
        >>> model = LlamaForCausalLM(config).eval()
        >>> texts = np.random.default_rng(0).integers(0, 40, (4, 96))
        >>> codec = KVCodec.calibrate(model, texts, continuation=32, kl=0.02, layers_per_basis=1)
        >>> cache = codec.live(window=16, chunk=32, coder="rice")
        >>> out = model.generate(torch.tensor(texts[:1]), past_key_values=cache, max_new_tokens=4, do_sample=False)
        >>> cache.get_seq_length(), cache.compressed_bits_per_value < 8.0
        (99, True)
        """
        decoder = self._bound
        shared = max(map(len, self.code.groups))
        if shared > 1:
            raise KVCacheError(
                f"Got a codec whose bases are shared by up to {shared} layers; a live cache codes layer by layer. "
                "Calibrate with layers_per_basis=1."
            )
        chosen: dict[str, Any] = {"sinks": self.sinks, **options}
        own, index = LiveOptions(**chosen), self._step(step)
        codes = [
            LayerCode(
                bases=self.code.bases.map(lambda x, g=g: x[g]),
                magnitudes=self.code.magnitudes.map(lambda x, g=g: x[g]),
                step=index,
                coder=own.coder,
            )
            for g in range(len(self.code.groups))
        ]
        return decoder.live(codes, own)

    def shares(self, states: States, token_ids: Any) -> dict[str, float]:
        """Return the parts of the coded bits of a prefix by kind and layers, at the calibrated step."""
        ids = small_ids(token_ids)
        self.code.check(states, len(ids))
        coded = states.map(lambda x: x[min(self.sinks, len(ids)) :])
        return self.code.shares(coded, self._places(ids, self.step, True, is_even=False), self.layers)

    def _places(self, ids: Int[np.ndarray, " tokens"], step: int, by_id: bool, *, is_even: bool) -> Places:
        rest = ids[min(self.sinks, len(ids)) :]
        return Places(order=Order.by_id(rest) if by_id else Order.natural(len(rest)), step=step, is_even=is_even)

    def _step(self, relative: float | None) -> int:
        if relative is None:
            return self.step
        index = self.step + int(grid_index(np.array(relative)))
        if index < self.finest:
            raise KVCacheError(
                f"Got step={relative:g}; the components of this codec serve for steps from {self.relative_finest:.3g} "
                "times the calibrated one. Calibrate with a smaller divergence."
            )
        return index

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
        header = {"model": self.model, "layers": self.layers, "groups": self.code.groups}
        header |= {name: getattr(self, name) for name in _IN_HEADER}
        return self.code.arrays(), header if self._format == 1 else {**header, "least": self.code.least}

    @property
    def _format(self) -> int:
        return 1 if self.code.is_first else self.file_format

    @classmethod
    def _of_content(cls, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> KVCodec:
        groups = tuple(tuple(group) for group in header["groups"])
        code = StatesCode.of_arrays(arrays, groups, int(header.get("least", FIRST)))
        sizes: dict[str, Any] = {name: int(header[name]) for name in _IN_HEADER}
        return cls(model=str(header["model"]), layers=tuple(header["layers"]), code=code, **sizes)
