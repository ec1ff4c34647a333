"""A small language model as a Hugging Face folder: ``python bench/networks/stories.py FOLDER``.

Reads the 260,000-parameter decoder trained on TinyStories (A. Karpathy's tinyllamas, MIT) from ``ADTN_DATA/weights``,
in the legacy format of llama2.c.
"""

from __future__ import annotations

import os
import struct
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn.errors import ADTNError


def stories_model(path: Path) -> Any:
    """Load the model as a ``LlamaForCausalLM``.

    Raises
    ------
    ADTNError
        If the file is shorter than its header says.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    content = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack_from("7i", content)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    values = np.frombuffer(content, "<f4", offset=28)
    at = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        size = int(np.prod(shape))
        part = values[at : at + size]
        if part.size != size:
            raise ADTNError(f"Got {path}, which is truncated by {size - part.size} values; download it again.")
        at += size
        return torch.from_numpy(part.reshape(shape).copy())

    kv = dim // heads * kv_heads
    state = {"model.embed_tokens.weight": take(vocab, dim)}
    parts = (
        ("input_layernorm", (dim,)),
        ("self_attn.q_proj", (dim, dim)),
        ("self_attn.k_proj", (kv, dim)),
        ("self_attn.v_proj", (kv, dim)),
        ("self_attn.o_proj", (dim, dim)),
        ("post_attention_layernorm", (dim,)),
        ("mlp.gate_proj", (hidden, dim)),
        ("mlp.down_proj", (dim, hidden)),
        ("mlp.up_proj", (hidden, dim)),
    )
    for name, shape in parts:
        for n, weight in enumerate(take(layers, *shape)):
            if name in ("self_attn.q_proj", "self_attn.k_proj"):  # in the file, rotated pairs are adjacent
                pairs = weight.reshape(-1, dim // heads // 2, 2, dim)
                weight = pairs.transpose(1, 2).reshape(weight.shape)
            state[f"model.layers.{n}.{name}.weight"] = weight
    state["model.norm.weight"] = take(dim)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


class Tokens:
    """The byte-pair encoding of ``tok512.bin``."""

    def __init__(self, path: Path) -> None:
        content, at = path.read_bytes(), 4
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        while at < len(content):
            score, size = struct.unpack_from("<fi", content, at)
            self.pieces.append(content[at + 8 : at + 8 + size])
            self.scores.append(score)
            at += 8 + size
        self.number = {piece: n for n, piece in reversed(list(enumerate(self.pieces)))}
        self._words: dict[bytes, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Encode text word by word, each with the space before it, merging pairs with the best score first."""
        ids: list[int] = []
        for word in text.replace("\n", " \n").split(" "):
            key = (" " + word).encode()
            if key not in self._words:
                self._words[key] = self._merged(key)
            ids += self._words[key]
        return ids

    def _merged(self, word: bytes) -> list[int]:
        # bytes without a piece of their own follow the three special tokens
        ids = [self.number.get(char.encode(), 3 + char.encode()[0]) for char in word.decode()]
        while True:
            pairs = [self.number.get(self.pieces[a] + self.pieces[b]) for a, b in pairwise(ids)]
            best = max((p for p in pairs if p is not None), key=lambda p: self.scores[p], default=None)
            if best is None:
                return ids
            k = pairs.index(best)
            ids[k : k + 2] = [best]

    def decode(self, ids: list[int]) -> str:
        """Decode text."""
        single = {3 + n: bytes([n]) for n in range(256)}
        return b"".join(single.get(i, self.pieces[i]) for i in ids if i > 2).decode(errors="replace")


def weights_folder() -> Path:
    """Return the folder of the model and its tokens.

    Raises
    ------
    ADTNError
        If they are not in ``ADTN_DATA``.
    """
    folder = Path(os.environ.get("ADTN_DATA", "")) / "weights"
    if not (folder / "stories260K.bin").exists():
        raise ADTNError(
            f"Found no stories260K.bin in {folder}; set ADTN_DATA to a folder with weights/stories260K.bin."
        )
    return folder


def stories(n: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Generate batches of 32 stories with the model, for ``adtn compress``."""
    model = stories_model(weights_folder() / "stories260K.bin")
    torch.manual_seed(seed)
    begin = torch.ones((32 * n, 1), dtype=torch.long)
    generated = [
        model.generate(part, min_new_tokens=127, max_new_tokens=127, do_sample=True, top_k=0, pad_token_id=0)
        for part in begin.split(512)
    ]
    return [{"input_ids": ids, "labels": ids} for ids in torch.cat(generated).split(32)]


def train() -> list[dict[str, torch.Tensor]]:
    """Generate 6,400 stories for training."""
    return stories(200, 0)


def test() -> list[dict[str, torch.Tensor]]:
    """Generate 128 other stories for evaluation."""
    return stories(4, 1)


def main() -> None:
    """Write the folder, and print a few generated words."""
    out, folder = Path(sys.argv[1]), weights_folder()
    model, tokens = stories_model(folder / "stories260K.bin"), Tokens(folder / "tok512.bin")
    model.save_pretrained(out)
    begin = torch.tensor([[1, *tokens.encode("Once upon a time")]])
    print(tokens.decode(model.generate(begin, max_new_tokens=60, do_sample=False, pad_token_id=0)[0].tolist()))


if __name__ == "__main__":
    main()
