"""The example for vLLM, as far as that goes without vLLM."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")

PATH = pathlib.Path(__file__).resolve().parents[2] / "examples" / "vllm" / "tensorbus_engine.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("tensorbus_engine", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tensorbus_engine"] = module
    spec.loader.exec_module(module)
    return module


class Attention(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        # Two of four heads and one of two key-value heads, each of three rows.
        self.qkv_proj = torch.nn.Linear(8, 12)
        self.o_proj = torch.nn.Linear(6, 8)


def test_fused_parameters_are_named_as_in_a_checkpoint(example: Any) -> None:
    model = torch.nn.ModuleDict({"self_attn": Attention()})
    tensors = example.checkpoint_tensors(model, heads=4, kv_heads=2, tp_size=2)
    weight = model["self_attn"].qkv_proj.weight
    assert torch.equal(tensors["self_attn.q_proj.weight"], weight[:6])
    assert torch.equal(tensors["self_attn.v_proj.weight"], weight[9:])
    assert tensors["self_attn.k_proj.bias"].shape == (3,)
    tensors["self_attn.k_proj.weight"].zero_()
    assert weight[6:9].abs().sum() == 0, "slices are views"
    assert example.placement_of("model.layers.0.self_attn.o_proj.weight") == "S(1)"
    assert example.placement_of("model.layers.0.self_attn.o_proj.bias") == "R"
    assert example.placement_of("model.layers.0.self_attn.k_proj.bias") == "S(0)"
    assert example.placement_of("model.norm.weight") == "R"
    with pytest.raises(ValueError, match="do not divide"):
        example.checkpoint_tensors(model, heads=4, kv_heads=2, tp_size=4)


def test_without_vllm_it_says_what_it_needs(example: Any) -> None:
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(RuntimeError, match=r"vllm\.distributed\.weight_transfer"):
            example.make_engine()
