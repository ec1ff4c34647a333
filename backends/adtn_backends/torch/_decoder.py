"""Hugging Face decoders: their caches as arrays without positions, and the second moments of gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn.errors import KVCacheError
from adtn.kv import LayerCode, LiveOptions, Pair
from torch import nn

from ._rotary import Rotary, rotary_of


@dataclass(frozen=True, kw_only=True)
class HFDecoder:
    """A decoder of transformers whose cache is a ``DynamicCache``.

    Parameters
    ----------
    model : torch.nn.Module
    """

    model: Any

    def __post_init__(self) -> None:
        try:
            cache = self._prefilled(torch.zeros(2, dtype=torch.long, device=self.device))
        except (TypeError, ValueError, AttributeError) as error:
            raise KVCacheError(
                f"{type(self.model).__name__} cannot be called with past_key_values ({error}). Expected a decoder of "
                "transformers, such as LlamaForCausalLM."
            ) from error
        if not self._coded(cache):
            raise KVCacheError(
                f"No layer of {type(self.model).__name__} has a plain dynamic cache; its layers have "
                f"{', '.join(sorted({type(layer).__name__ for layer in cache.layers}))}. Expected at least one layer "
                "with full attention."
            )

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    @property
    def like(self) -> torch.Tensor:
        """An empty array on the device of the model."""
        return torch.empty(0, device=self.device)

    @cached_property
    def rotary(self) -> Rotary | None:
        """The rotation of the keys."""

        def first_keys(ids: torch.Tensor) -> torch.Tensor:
            cache = self._prefilled(ids)
            return cache.layers[self._coded(cache)[0]].keys[0]

        return rotary_of(self.model, first_keys)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers with full attention, which are coded; others stay as they are."""
        return self._coded(self._prefilled(torch.zeros(2, dtype=torch.long, device=self.device)))

    @property
    def nbytes(self) -> int:
        """The bytes of the parameters; tied ones count once."""
        return sum(x.nbytes for x in self.model.parameters())

    @cached_property
    def digest(self) -> str:
        """The SHA-256 digest of the model's parameters, by name."""
        found = hashlib.sha256()
        for name, x in sorted(self.model.state_dict().items()):
            found.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
            found.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return found.hexdigest()

    def _prefilled(self, ids: torch.Tensor) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        with torch.no_grad():
            self.model(input_ids=ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    @staticmethod
    def _coded(cache: Any) -> tuple[int, ...]:
        from transformers.cache_utils import DynamicLayer

        return tuple(k for k, layer in enumerate(cache.layers) if type(layer) is DynamicLayer)

    def prefill(self, token_ids: np.ndarray) -> Any:
        """Return the exact cache of a text."""
        return self._prefilled(self._ids(token_ids))

    def states(self, cache: Any, *, rotated: bool = False) -> Pair[torch.Tensor]:
        """Return keys before rotation, or ``rotated``, and values, ``(tokens, layers, heads, channels)`` in float32.

        Raises
        ------
        KVCacheError
            If the cache is not one of this model, or holds several sequences.
        """
        own = self._own(cache)
        keys = torch.stack([layer.keys[0] for layer in own])
        if self.rotary is not None and not rotated:
            keys = self.rotary.undo(keys, torch.arange(keys.shape[-2], device=keys.device))
        values = torch.stack([layer.values[0] for layer in own])
        return Pair(k=keys.permute(2, 0, 1, 3).float(), v=values.permute(2, 0, 1, 3).float())

    def _own(self, cache: Any) -> list[Any]:
        layers = getattr(cache, "layers", ())
        if not layers or self._coded(cache) != self.layers or any(layer.keys is None for layer in layers):
            raise KVCacheError(
                f"Got a {type(cache).__name__} with {len(layers)} layers; expected a DynamicCache that "
                f"{type(self.model).__name__} has filled, with "
                f"{len(self.layers)} of them."
            )
        sizes = {layer.keys.shape[0] for layer in layers}
        if sizes != {1}:
            raise KVCacheError(
                f"Got a cache of {max(sizes)} sequences; expected one. cache.batch_select_indices takes one of them."
            )
        return [layers[k] for k in self.layers]

    def others(self, cache: Any) -> dict[str, np.ndarray]:
        """Return the states of layers that are not coded, as they are, in float32."""
        found: dict[str, np.ndarray] = {}
        for k, layer in enumerate(cache.layers):
            if k in self.layers:
                continue
            found[f"{k}.keys"], found[f"{k}.values"] = (x.float().cpu().numpy() for x in (layer.keys, layer.values))
            found[f"{k}.length"] = np.array([layer.get_seq_length()], np.int64)
        return found

    def cache(
        self,
        states: Pair[torch.Tensor],
        others: Mapping[str, np.ndarray],
        *,
        rotated: bool = False,
        device: str | torch.device | None = None,
    ) -> Any:
        """Build a cache of one sequence, in the dtype of the model, on its device if none is given; see :meth:`states`.

        Raises
        ------
        KVCacheError
            If there is no such device.
        """
        from transformers import DynamicCache

        dtype, place = next(self.model.parameters()).dtype, self._place(device)
        keys, values = (x.permute(1, 2, 0, 3)[:, None].to(self.device) for x in states)
        if self.rotary is not None and not rotated:
            keys = self.rotary.apply(keys, torch.arange(keys.shape[-2], device=self.device))
        cache: Any = DynamicCache(config=self.model.config)
        for k, own_keys, own_values in zip(self.layers, keys.to(dtype), values.to(dtype), strict=True):
            cache.layers[k].update(own_keys.to(place), own_values.to(place))
        for k in sorted({int(name.split(".")[0]) for name in others}):
            own = (torch.as_tensor(others[f"{k}.{name}"]).to(place, dtype) for name in ("keys", "values"))
            cache.layers[k].update(*own)
            if hasattr(cache.layers[k], "cumulative_length"):
                cache.layers[k].cumulative_length = int(others[f"{k}.length"][0])
        return cache

    def _place(self, device: str | torch.device | None) -> torch.device:
        if device is None:
            return self.device
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, TypeError, AssertionError) as error:  # torch without CUDA fails with an assertion
            raise KVCacheError(f"Got device={device!r}; expected one of PyTorch, such as 'cpu' ({error}).") from error

    def live(self, codes: Sequence[LayerCode], options: LiveOptions) -> Any:
        """Make an empty cache that codes the old tokens of :attr:`layers`; see :meth:`adtn.kv.KVCodec.live`."""
        from transformers import DynamicCache

        from ._live import live_cache  # which needs transformers when it is imported

        plain = DynamicCache(config=self.model.config).layers
        embedding = self.model.get_input_embeddings()
        return live_cache(plain, dict(zip(self.layers, codes, strict=True)), self.rotary, embedding, options)

    def gradients(self, cache: Any, continuation: np.ndarray, samples: int, seed: int) -> Iterator[Pair[torch.Tensor]]:
        """Return gradients of log-likelihoods of labels that the model draws; see :class:`adtn.kv.Decoder`."""
        own = self._own(cache)
        leaves = [x.detach().requires_grad_() for layer in own for x in (layer.keys, layer.values)]
        for layer, keys, values in zip(own, leaves[::2], leaves[1::2], strict=True):
            layer.keys, layer.values = keys, values
        with torch.enable_grad():
            scores = self._scores(cache, continuation)
        random = np.random.default_rng(seed)
        cumulated = scores.detach().exp().cumsum(-1)
        for k in range(samples):
            drawn = torch.from_numpy(random.random((len(scores), 1), dtype=np.float32)).to(scores.device)
            labels = torch.searchsorted(cumulated, drawn * cumulated[:, -1:]).clamp(max=scores.shape[-1] - 1)
            total = scores.gather(-1, labels).sum() / len(scores) ** 0.5
            found = torch.autograd.grad(total, leaves, retain_graph=k + 1 < samples)
            keys, values = torch.stack(found[::2])[:, 0], torch.stack(found[1::2])[:, 0]
            if self.rotary is not None:
                keys = self.rotary.adjoint(keys, torch.arange(keys.shape[-2], device=keys.device))
            yield Pair(k=keys.permute(2, 0, 1, 3).float(), v=values.permute(2, 0, 1, 3).float())

    def log_probabilities(self, cache: Any, continuation: np.ndarray, *, position: int | None = None) -> torch.Tensor:
        """Return those of the next token after each of a continuation, ``(tokens, vocabulary)``, in float32."""
        with torch.no_grad():
            return self._scores(cache, continuation, position)

    def _scores(self, cache: Any, continuation: np.ndarray, position: int | None = None) -> torch.Tensor:
        ids = self._ids(continuation)[None]
        options: dict[str, Any] = {}
        if position is not None:
            options["position_ids"] = position + torch.arange(ids.shape[1], device=self.device)[None]
        result = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **options)
        return result.logits[0].float().log_softmax(-1)

    def tokens(self, text: str) -> np.ndarray:
        """Return the token ids of a text, by the tokenizer beside the model.

        Raises
        ------
        KVCacheError
            If there is none.
        """
        return np.asarray(self._tokenizer(text)["input_ids"], np.int64)

    def text(self, token_ids: np.ndarray) -> str:
        """Return the text of token ids."""
        return str(self._tokenizer.decode(np.asarray(token_ids).tolist()))

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.model.name_or_path)
        except (OSError, ValueError, TypeError) as error:
            raise KVCacheError(
                f"There is no tokenizer beside the model in {self.model.name_or_path!r} ({error}). Give token ids, in "
                "a .npy file."
            ) from error

    def generate(self, cache: Any, token_ids: np.ndarray, new: int) -> np.ndarray:
        """Return the ``new`` most likely tokens after a text, of which the cache holds the beginning."""
        with torch.no_grad():
            out = self.model.generate(
                self._ids(token_ids)[None], past_key_values=cache, max_new_tokens=new, do_sample=False
            )
        return out[0, len(token_ids) :].cpu().numpy()

    def _ids(self, token_ids: np.ndarray) -> torch.Tensor:
        ids = torch.as_tensor(np.asarray(token_ids), dtype=torch.long)
        vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise KVCacheError(
                f"Got token ids from {int(ids.min())} to {int(ids.max())}; {type(self.model).__name__} has "
                f"{vocabulary:,}, from 0."
            )
        return ids.to(self.device)


def decoder_of(model: Any) -> HFDecoder | None:
    """Wrap a decoder, or the one in a Hugging Face folder (a ``Path``); ``None`` for other objects."""
    if isinstance(model, Path):
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(model)
        return HFDecoder(model=loaded.eval().requires_grad_(False))
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        return None
    return HFDecoder(model=model)
