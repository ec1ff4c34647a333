"""Small decoders whose next token depends on what they have read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 50
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def llama(seed: int = 0, **changes: Any) -> Any:
    """Make a Llama with two key-value heads."""
    return _seeded(LlamaForCausalLM, LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **changes}), seed)


def models() -> dict[str, Any]:
    """Make a decoder of every kind of rotation."""
    return {
        "llama": llama(),
        "without grouped heads, scaled": llama(
            num_key_value_heads=4, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
        ),
        "qwen3, normalised keys": _seeded(
            Qwen3ForCausalLM, Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=12, tie_word_embeddings=False), 1
        ),
        "gpt-neox, part of the channels": _seeded(
            GPTNeoXForCausalLM,
            GPTNeoXConfig(
                **SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
            ),
            2,
        ),
        "cohere, neighbouring channels": _seeded(CohereForCausalLM, CohereConfig(**SIZES, num_key_value_heads=2), 3),
        "gpt2, no rotation": _seeded(
            GPT2LMHeadModel,
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_layer=3,
                n_head=4,
                n_positions=512,
                initializer_range=0.3,
                bos_token_id=1,
                eos_token_id=1,
            ),
            4,
        ),
        "gemma2, one layer slides": _seeded(
            Gemma2ForCausalLM,
            Gemma2Config(
                **SIZES,
                num_key_value_heads=2,
                head_dim=8,
                sliding_window=24,
                layer_types=["full_attention", "sliding_attention", "full_attention"],
            ),
            5,
        ),
    }


def _seeded(kind: Any, config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    model = kind(config).eval()
    return model.requires_grad_(False)


def texts(n: int, length: int, seed: int = 0) -> np.ndarray:
    """Draw token ids, few of which are frequent."""
    random = np.random.default_rng(seed)
    return np.minimum(random.geometric(0.08, (n, length)), VOCABULARY - 1)
