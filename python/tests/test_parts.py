"""Presets of the command line, from Python: parameters of engines and trainers as views that travel."""

from __future__ import annotations

import json
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import tensorbus
from conftest import client_of

LLAMA = {
    "model_type": "llama",
    "vocab_size": 70,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}
EXPERTS = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "moe_intermediate_size": 6,
    "torch_dtype": "float32",
}


def memory_of(parts: tensorbus.PresetParts) -> dict[str, Any]:
    return {part.parameter: np.zeros(part.parameter_shape, np.float32) for part in parts.parts.values()}


def test_parameters_are_cut_into_views(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    parts = tensorbus.preset_parts(path, "vllm:tp=2", rank=1)
    assert parts.world_size == 2
    memory = memory_of(parts)
    views = parts.views(memory)
    qkv = memory["model.layers.0.self_attn.qkv_proj.weight"]
    views["model.layers.0.self_attn.k_proj.weight"][:] = 7
    assert (qkv == 7).all(axis=1).tolist() == [False] * 8 + [True] * 4 + [False] * 4
    mesh, placements, whole = parts.layout("model.embed_tokens.weight", None)
    assert (mesh.ranks, list(placements), whole) == ((0, 1), ["S(0;64,6)"], (70, 8))
    assert views["model.embed_tokens.weight"].shape == (6, 8)
    # One has another size, one another name, and one is not in one piece.
    key = "model.layers.0.self_attn.qkv_proj.weight"
    with pytest.raises(ValueError, match=r"has the shape \[3, 8\], and the preset says \[16, 8\]"):
        parts.views({**memory, key: np.zeros((3, 8), np.float32)})
    with pytest.raises(ValueError, match=r"q_proj.weight lies in parameter .*qkv_proj.weight, and there is no such"):
        parts.views({name: value for name, value in memory.items() if name != key})
    with pytest.raises(ValueError, match="is not contiguous"):
        parts.views({**memory, key: np.zeros((16, 16), np.float32)[:, ::2]})


def test_a_command_line_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorbus._parts._SECONDS", 0.001)
    with pytest.raises(TimeoutError, match="has not answered"):
        tensorbus.preset_parts(LLAMA, "vllm:tp=2", rank=0)


@pytest.mark.parametrize(
    ("config", "preset", "code", "says"),
    [
        ({**LLAMA, "model_type": "unheard"}, "vllm:tp=2", "TB_MODEL_CONFIG", 'config: model_type "unheard" is unknown'),
        ("/nowhere/config.json", "vllm:tp=2", "TB_FILE", "cannot read /nowhere/config.json"),
        (LLAMA, "vllm:tp=3", "TB_PRESET", "vllm:tp=3: 4 heads over tp=3 ranks would split a head"),
    ],
)
def test_refusals_have_the_code_of_the_command_line(config: Any, preset: str, code: str, says: str) -> None:
    with pytest.raises(ValueError, match=code) as refused:
        tensorbus.preset_parts(config, preset, rank=0)
    error: Any = refused.value
    assert (error.code, error.details) == (code, {"preset": preset})
    assert error.message.startswith(says)


def test_what_a_preset_refuses_is_told() -> None:
    with pytest.raises(tensorbus.TensorBusError, match="4 heads over tp=3 ranks would split a head"):
        tensorbus.preset_parts(LLAMA, "vllm:tp=3", rank=0)
    with pytest.raises(tensorbus.TensorBusError, match="has ranks 0 to 1, not 2"):
        tensorbus.preset_parts(LLAMA, "vllm:tp=2", rank=2)
    with pytest.raises(ValueError, match="both given"):
        tensorbus.preset_parts(LLAMA, "vllm:tp=2", rank=0, source="hf:1", target="hf:1")


@pytest.mark.parametrize("form", ["checkpoint", "state_dict"])
def test_both_sides_are_views_and_experts_go_to_their_owners(agents: tensorbus.Agents, form: str) -> None:
    """FSDP2's rows of two ranks to vLLM's experts on two: in three dimensions they are cut as the engine needs them."""
    trainer, engine = "fsdp2:dp=2", "vllm:tp=2,ep"
    # What each rank of the trainer holds: element i of a tensor has the number i.
    sent = [tensorbus.preset_parts(EXPERTS, trainer, rank=rank, target=engine, form=form) for rank in (0, 1)]
    wanted = [tensorbus.preset_parts(EXPERTS, engine, rank=rank, source=trainer, form=form) for rank in (0, 1)]
    memories = [memory_of(parts) for parts in [*sent, *wanted]]
    for name in memories[0]:
        first, second = memories[0][name], memories[1].get(name, np.zeros(0, np.float32))
        first[...] = np.arange(first.size).reshape(first.shape)
        second[...] = first.size + np.arange(second.size).reshape(second.shape)

    def run(at: int) -> None:
        source = at < 2
        parts = [*sent, *wanted][at]
        with (
            client_of(at) as client,
            tensorbus.Weights(
                f"parts-{form}",
                parts.views(memories[at]),
                role="source" if source else "target",
                client=client,
                rank=at % 2,
                world_size=2,
                layout=parts.layout,
                timeout=40,
            ) as weights,
        ):
            if source:
                weights.send(timeout=40)
            else:
                weights.recv(timeout=40)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    at = "model.layers.0.mlp.experts"
    rows: Any = np.arange(6 * 8, dtype=np.float32).reshape(6, 8)
    for rank, memory in enumerate(memories[2:]):
        w13 = memory[f"{at}.routed_experts.w13_weight"]
        if form == "state_dict":
            both: Any = np.arange(4 * 12 * 8, dtype=np.float32).reshape(4, 12, 8)
            np.testing.assert_array_equal(w13, both[2 * rank : 2 * rank + 2])
        else:
            np.testing.assert_array_equal(w13, np.stack([np.concatenate([rows, rows])] * 2))
        q: Any = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)[8 * rank : 8 * rank + 8]
        k: Any = np.arange(8 * 8, dtype=np.float32).reshape(8, 8)[4 * rank : 4 * rank + 4]
        qkv = memory["model.layers.0.self_attn.qkv_proj.weight"]
        np.testing.assert_array_equal(qkv, np.concatenate([q, k, k]))
