"""Checkpoints of transformers become files of an engine's ranks, and again what transformers loads: the same logits."""

from __future__ import annotations

import pathlib
import subprocess
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLI = pathlib.Path(__file__).resolve().parents[2] / "dist" / "cli.js"
SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
MODELS = {
    "phi3": lambda: transformers.Phi3Config(**SMALL, pad_token_id=0),
    "tied": lambda: transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "moe": lambda: transformers.Qwen3MoeConfig(**SMALL, **EXPERTS),
}


def reshard(*words: str) -> None:
    run = subprocess.run(["node", str(CLI), "reshard", *words], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def logits(model: Any) -> Any:
    tokens = torch.arange(24).reshape(2, 12) % SMALL["vocab_size"]
    with torch.no_grad():
        return model.eval()(tokens).logits


@pytest.mark.parametrize("kind", MODELS)
def test_a_round_trip_keeps_the_logits(kind: str, tmp_path: pathlib.Path) -> None:
    torch.manual_seed(3)
    original, ranks, again = (str(tmp_path / name) for name in ("original", "ranks", "again"))
    model = transformers.AutoModelForCausalLM.from_config(MODELS[kind](), dtype=torch.bfloat16)
    model.save_pretrained(original)
    reshard(original, "--target", "vllm:tp=2", "--out", ranks)
    reshard(ranks, "--target", "hf", "--with", original, "--out", again)
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        again, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits(loaded), logits(model))
