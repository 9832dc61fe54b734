"""The model of both sides: a small Llama whose sizes do not divide by the trainer's ranks."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=131,
        hidden_size=48,
        intermediate_size=106,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )


def tokens(seed: int) -> torch.Tensor:
    """A batch that every process makes alike."""
    return torch.randint(0, 131, (2, 16), generator=torch.Generator().manual_seed(seed))


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(config())
