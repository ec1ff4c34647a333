"""Caches of transformers whose old tokens are coded while a model generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from adtn.errors import KVCacheError
from adtn.kv import Coded, LayerCode, LiveOptions, Order, Pair
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer

from ._positions import Positions
from ._rotary import Rotary
from ._token_ids import TokenIds


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """The tokens of one sequence in a chunk, on the host; several sequences can have the same one.

    Parameters
    ----------
    coded : Coded
    tokens : int
        With the sinks.
    positions : array, (tokens,) or (1,)
        The first alone, if the others follow one by one.
    at : int
        The place of the first sink.
    sinks : Pair of tensor, (heads, sinks, channels)
        As they are.
    ids : array, (coded tokens,)
        Negative where they are unknown; the rows of all layers share it.
    """

    coded: Coded
    tokens: int
    positions: np.ndarray
    at: int
    sinks: Pair[torch.Tensor]
    ids: np.ndarray

    @property
    def nbytes(self) -> int:
        """The bytes of all but the ids."""
        return self.coded.nbytes + self.positions.nbytes + sum(x.nbytes for x in self.sinks)

    @property
    def coded_tokens(self) -> int:
        """The number of tokens that are not sinks."""
        return self.tokens - self.sinks.k.shape[-2]

    def all_positions(self, device: torch.device) -> torch.Tensor:
        """Return the positions of all tokens, ``(tokens,)``."""
        own = self.positions
        if len(own) < self.tokens:
            own = own[0] + np.arange(self.tokens, dtype=np.int32)
        return torch.from_numpy(own).to(device)

    def __deepcopy__(self, memo: object) -> Row:
        """Return the same row, as it never changes: copies of a cache share it."""
        return self


def _cut(x: torch.Tensor, row: Row) -> torch.Tensor:
    """Return tokens, ``(..., tokens, channels)``, without sinks."""
    return torch.cat((x[..., : row.at, :], x[..., row.at + row.tokens - row.coded_tokens :, :]), -2)


def _with_sinks(row: Row) -> torch.Tensor:
    """Return the ids of all tokens, ``(tokens,)``; those of sinks are unknown."""
    ids = torch.from_numpy(row.ids.astype(np.int32))
    return torch.cat((ids[: row.at], ids.new_full((row.tokens - len(ids),), -1), ids[row.at :]))


def _closed(x: torch.Tensor, sinks: torch.Tensor, at: int) -> torch.Tensor:
    """Put sinks back where they were cut out."""
    return torch.cat((x[..., :at, :], sinks.to(x.device, x.dtype), x[..., at:, :]), -2)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The first chunks of a layer, decoded.

    Parameters
    ----------
    chunks : int
        Their number.
    states : Pair of tensor, (batch, heads, tokens, channels)
        Keys, rotated, and values.
    coefficients : mapping of int to Pair of array
        Of the coded tokens of every row, by its identity.
    """

    chunks: int
    states: Pair[torch.Tensor]
    coefficients: Mapping[int, Pair[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays."""
        return sum(x.nbytes for own in (self.states, *self.coefficients.values()) for x in own)


class LiveLayer(DynamicLayer):
    """A layer of a cache that holds its last tokens as they are, and older ones coded.

    ``keys`` and ``values`` hold the last tokens; what :meth:`update` returns is complete.

    Parameters
    ----------
    code : LayerCode
    positions : Positions
    token_ids : TokenIds
    options : LiveOptions
    """

    keys: Any  # tensors after the first update
    values: Any

    def __init__(self, code: LayerCode, positions: Positions, token_ids: TokenIds, options: LiveOptions) -> None:
        super().__init__()
        self.code, self.options = code, options
        self.chunks: list[list[Row]] = []
        self._source, self._used = positions, positions.last_call
        self._token_ids, self._heard = token_ids, token_ids.last_call
        self._places = self._ids = torch.empty((0, 0), dtype=torch.int32)
        self._starts: list[int] = []
        self._held: Decoded | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values, and return all; tokens that are coded now are returned as they were.

        Raises
        ------
        KVCacheError
            If it is not known by which positions the keys were rotated.
        """
        places = self._source.of(key_states, self.get_seq_length(), self._used)
        ids = self._token_ids.of(key_states, self._heard)
        self._used, self._heard = self._source.last_call, self._token_ids.last_call
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._places, self._ids = places[:, :0], ids[:, :0]
        past = self._past()
        self._places, self._ids = torch.cat((self._places, places), -1), torch.cat((self._ids, ids), -1)
        keys, values = super().update(key_states, value_states)
        if past is not None:
            keys, values = torch.cat((past.states.k, keys), -2), torch.cat((past.states.v, values), -2)
        self._code_old({} if past is None else past.coefficients)
        return keys, values

    def _code_old(self, decoded: Mapping[int, Pair[np.ndarray]]) -> None:
        """Code all chunks that have left the window; coefficients of earlier ones were ``decoded``."""
        n, dense = self.options.chunk, self.keys.shape[-2]
        count = max(dense - self.options.window, 0) // n
        if not count:
            return
        places, ids = self._places.cpu().numpy(), self._ids.cpu().numpy()
        if not self.chunks:
            # left padding has the position of the first token, which is 0
            runs = np.where(places.any(-1), np.argmax(places != 0, -1), places.shape[-1])
            self._starts = [max(int(run) - 1, 0) for run in runs]
        first, known = self._coded_length, dict(decoded)
        for k in range(count):
            own = slice(k * n, (k + 1) * n)
            keys, values = self.keys[..., own, :].detach(), self.values[..., own, :].detach()
            rows: list[Row] = []
            for b, start in enumerate(self._starts):
                row = self._cut_row(keys[b], values[b], places[b, own], ids[b, own], start - first - k * n)
                chain = [chunk[b] for chunk in self.chunks] if self.options.order == "ids" else []
                row, known_row = self._coded_row(row, keys[b], values[b], chain, known)
                known[id(row)] = known_row
                rows.append(row)
            self.chunks.append(rows)
        self._keep(slice(count * n, None))

    def _cut_row(
        self, keys: torch.Tensor, values: torch.Tensor, positions: np.ndarray, ids: np.ndarray, start: int
    ) -> Row:
        """Return what is not coded of the tokens of a sequence; its sinks begin at ``start``, which can be outside."""
        tokens = len(positions)
        at, end = (min(max(x, 0), tokens) for x in (start, start + self.options.sinks))
        follow = bool((np.diff(positions) == 1).all())
        return Row(
            coded=Coded(words=np.empty(0, np.uint32), beyond=np.empty(0, np.int32)),
            tokens=tokens,
            positions=positions[:1].copy() if follow else positions.copy(),
            at=at,
            sinks=Pair(k=keys[:, at:end].cpu().clone(), v=values[:, at:end].cpu().clone()),
            ids=self._token_ids.shared(np.concatenate((ids[:at], ids[end:]))),
        )

    def _coded_row(
        self,
        row: Row,
        keys: torch.Tensor,
        values: torch.Tensor,
        chain: Sequence[Row],
        decoded: Mapping[int, Pair[np.ndarray]],
    ) -> tuple[Row, Pair[np.ndarray]]:
        """Code the tokens of one sequence after a chain of others, and return what their coefficients decode to."""
        if self._source.rotary is not None:
            keys = self._source.rotary.undo(keys.float(), row.all_positions(keys.device))
        states = Pair(k=_cut(keys.float(), row), v=_cut(values.float(), row)).map(lambda x: x.permute(1, 0, 2))
        order = self._order([*chain, row], [range(len(chain) + 1)])
        coded, known = self.code.encode(states, order, self._known(chain, decoded))
        return replace(row, coded=coded), known

    def _order(self, rows: Sequence[Row], chains: Sequence[Sequence[int]]) -> Order:
        if self.options.order == "natural":
            return Order.natural(sum(row.coded_tokens for row in rows))
        return Order.of_chains([row.ids for row in rows], chains)

    def _known(self, rows: Sequence[Row], decoded: Mapping[int, Pair[np.ndarray]]) -> Pair[np.ndarray]:
        parts = [self.code.none, *(decoded[id(row)] for row in rows)]
        return Pair(k=np.concatenate([x.k for x in parts]), v=np.concatenate([x.v for x in parts]))

    def _decoded(self, before: Decoded | None) -> Decoded:
        """Decode the chunks after those that were decoded before."""
        done = 0 if before is None else before.chunks
        known = {} if before is None else before.coefficients
        rows = list({id(row): row for chunk in self.chunks for row in chunk}.values())
        at = {id(row): k for k, row in enumerate(rows)}
        chains = {tuple(at[id(chunk[b])] for chunk in self.chunks) for b in range(len(self.chunks[0]))}
        old, new = [row for row in rows if id(row) in known], [row for row in rows if id(row) not in known]
        sizes = [row.coded_tokens for row in new]
        order = self._order(rows, [*chains])
        c = self.code.decode([row.coded for row in new], sizes, order, self._known(old, known))
        like = torch.empty(0, device=self.device)
        states = self.code.states(c, like).map(lambda x: x.permute(1, 0, 2))
        if self._source.rotary is not None:
            places = [_cut(row.all_positions(self.device)[:, None], row)[:, 0] for row in new]
            states = Pair(k=self._source.rotary.apply(states.k, torch.cat(places)), v=states.v)
        keys, values = (x.to(self.dtype).split(sizes, -2) for x in states)
        found = {
            id(row): Pair(k=_closed(k, row.sinks.k, row.at), v=_closed(v, row.sinks.v, row.at))
            for row, k, v in zip(new, keys, values, strict=True)
        }
        parts = [[found[id(row)] for row in chunk] for chunk in self.chunks[done:]]
        whole = [] if before is None else [before.states]
        whole += [Pair(k=torch.stack([x.k for x in part]), v=torch.stack([x.v for x in part])) for part in parts]
        splits = Pair(k=np.split(c.k, np.cumsum(sizes)[:-1]), v=np.split(c.v, np.cumsum(sizes)[:-1]))
        return Decoded(
            chunks=len(self.chunks),
            states=Pair(k=torch.cat([x.k for x in whole], -2), v=torch.cat([x.v for x in whole], -2)),
            coefficients={
                **known,
                # copied, so that what is held of a chunk does not hold all others
                **{id(row): Pair(k=k.copy(), v=v.copy()) for row, k, v in zip(new, splits.k, splits.v, strict=True)},
            },
        )

    def _past(self) -> Decoded | None:
        """Return the keys and values of all chunks."""
        if not self.chunks:
            return None
        if not self.options.cached:
            return self._decoded(None)
        if self._held is None or self._held.chunks < len(self.chunks):
            self._held = self._decoded(self._held)
        return self._held

    def _keep(self, own: slice) -> None:
        """Keep a part of the last tokens; copied, so that the memory of others is free."""
        self.keys, self.values = self.keys[..., own, :].clone(), self.values[..., own, :].clone()
        self._places, self._ids = self._places[:, own].clone(), self._ids[:, own].clone()

    @property
    def _coded_length(self) -> int:
        return sum(chunk[0].tokens for chunk in self.chunks)

    def get_seq_length(self) -> int:
        """Return the number of tokens, coded or not."""
        return self._coded_length + super().get_seq_length()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens; the chunk that is cut is held as it was decoded.

        Raises
        ------
        KVCacheError
            If the number is positive.
        """
        if tokens_to_remove > 0:
            raise KVCacheError(f"Got tokens_to_remove={tokens_to_remove}; expected minus the number of tokens.")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        dense, left = self.keys.shape[-2], -tokens_to_remove
        self._keep(slice(max(dense - left, 0)))
        left -= dense
        while left > 0 and self.chunks:
            tokens = self.chunks[-1][0].tokens
            if left < tokens:
                found = self._decoded(None).states
                self.keys, self.values = found.k[..., -tokens:, :], found.v[..., -tokens:, :]
                self._places = torch.stack([row.all_positions(self.device) for row in self.chunks[-1]])
                self._ids = torch.stack([_with_sinks(row).to(self.device) for row in self.chunks[-1]])
                self._keep(slice(tokens - left))
            self._held = None
            self.chunks.pop()
            left -= tokens

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.chunks, self._starts, self._held = [], [], None
        self._places = self._ids = torch.empty((0, 0), dtype=torch.int32)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Take sequences in another order, some repeatedly."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence; copies share what is coded."""
        if self.get_seq_length() > 0:
            self.batch_select_indices(torch.arange(self.keys.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some sequences."""
        if self.get_seq_length() == 0:
            return
        own = torch.arange(self.keys.shape[0])[indices.cpu()]
        self.keys, self.values, self._places, self._ids = (
            x.index_select(0, own.to(x.device)) for x in (self.keys, self.values, self._places, self._ids)
        )
        self.chunks = [[chunk[k] for k in own.tolist()] for chunk in self.chunks]
        self._starts = [self._starts[k] for k in own.tolist()] if self._starts else []
        self._held = None

    def offload(self) -> None:
        """Move what is not coded to the host, where the rest is already."""
        super().offload()
        self._held = None

    @property
    def rows(self) -> list[Row]:
        """All different rows."""
        return list({id(row): row for chunk in self.chunks for row in chunk}.values())

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays that are held but the ids of coded tokens, which layers share."""
        if not self.is_initialized:
            return 0
        held = () if self._held is None else (self._held,)
        return sum(x.nbytes for x in (self.keys, self.values, self._places, self._ids, *held, *self.rows))

    @property
    def size(self) -> int:
        """The number of values that a dense cache would hold."""
        return self.code.values(self.get_seq_length()) * self.keys.shape[0] if self.is_initialized else 0


class LiveCache(Cache):
    """A cache whose old tokens are coded, made by :meth:`adtn.kv.KVCodec.live`.

    It is used like a ``DynamicCache``, for one batch after the other if it is ``reset``. Copies share what is
    coded, so a long prompt can be read once and continued many times. As a context manager it is closed at the end.

    Parameters
    ----------
    layers : list
        Of transformers; some are a :class:`LiveLayer`.
    sources : sequence of Positions or TokenIds
        What listens to the model.
    offloading : bool
    """

    def __init__(self, layers: list[Any], sources: Sequence[Positions | TokenIds], *, offloading: bool = False) -> None:
        super().__init__(layers=layers, offloading=offloading)
        self._sources = list(sources)

    def close(self) -> None:
        """Stop listening to the model; what is held can still be counted."""
        for source in self._sources:
            source.close()

    def __enter__(self) -> LiveCache:
        """Return the cache."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the cache."""
        self.close()

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays that are held, on the device and on the host; without the codec."""
        own = sum(layer.nbytes if isinstance(layer, LiveLayer) else _nbytes(layer) for layer in self.layers)
        return own + self._ids_nbytes

    @property
    def _ids_nbytes(self) -> int:
        rows = [row for layer in self.layers if isinstance(layer, LiveLayer) for row in layer.rows]
        return sum(ids.nbytes for ids in {id(row.ids): row.ids for row in rows}.values())

    @property
    def bits_per_value(self) -> float:
        """The bits of the whole cache divided by the number of values of a ``DynamicCache``."""
        sizes = [layer.size if isinstance(layer, LiveLayer) else _size(layer) for layer in self.layers]
        return 8 * self.nbytes / max(sum(sizes), 1)

    @property
    def compressed_bits_per_value(self) -> float:
        """The bits of the coded tokens, without sinks, divided by the number of their values; 0 if there are none."""
        bits, values = 8 * self._ids_nbytes, 0
        for layer in self.layers:
            if isinstance(layer, LiveLayer):
                bits += 8 * sum(row.nbytes - sum(x.nbytes for x in row.sinks) for row in layer.rows)
                values += layer.code.values(sum(row.coded_tokens for row in layer.rows))
        return bits / max(values, 1)


def _nbytes(layer: Any) -> int:
    return sum(x.nbytes for x in (layer.keys, layer.values) if x is not None)


def _size(layer: Any) -> int:
    return sum(x.numel() for x in (layer.keys, layer.values) if x is not None)


def live_cache(
    plain: Sequence[Any],
    codes: Mapping[int, LayerCode],
    rotary: Rotary | None,
    embedding: nn.Module | None,
    options: LiveOptions,
) -> LiveCache:
    """Make an empty cache of plain layers, of which those with a code are replaced.

    Raises
    ------
    KVCacheError
        If the rotations of the model depend on the length of the text.
    """
    positions, ids = Positions(rotary), TokenIds(embedding if options.order == "ids" else None)
    layers = [LiveLayer(codes[k], positions, ids, options) if k in codes else layer for k, layer in enumerate(plain)]
    return LiveCache(layers, [positions, ids], offloading=options.offloading)
