"""An engine: tensor parallel on every rank, bfloat16, query, key and value in one parameter, gate and up in another."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig

import tensorbus
from model import config, tokens


class Layer(nn.Module):
    def __init__(self, c: LlamaConfig, ranks: int, dtype: torch.dtype) -> None:
        super().__init__()

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(rows, columns, dtype=dtype), requires_grad=False)

        self.heads, self.kv_heads, self.head_dim = (
            c.num_attention_heads // ranks,
            c.num_key_value_heads // ranks,
            c.head_dim,
        )
        self.qkv = matrix((self.heads + 2 * self.kv_heads) * c.head_dim, c.hidden_size)
        self.o = matrix(c.hidden_size, self.heads * c.head_dim)
        self.gate_up = matrix(2 * c.intermediate_size // ranks, c.hidden_size)
        self.down = matrix(c.hidden_size, c.intermediate_size // ranks)
        self.attention_norm = nn.Parameter(torch.ones(c.hidden_size, dtype=dtype), requires_grad=False)
        self.mlp_norm = nn.Parameter(torch.ones(c.hidden_size, dtype=dtype), requires_grad=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float) -> torch.Tensor:
        sizes = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        parts = F.linear(norm(x, self.attention_norm, eps), self.qkv).split(sizes, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, dim=1) for each in (k, v))
        scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        attention = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype)
        x = x + summed(F.linear((attention @ v).transpose(1, 2).flatten(-2), self.o))
        gate, up = F.linear(norm(x, self.mlp_norm, eps), self.gate_up).chunk(2, dim=-1)
        return x + summed(F.linear(F.silu(gate) * up, self.down))


class Engine(nn.Module):
    """Llama's forward pass, each rank with its heads and its columns."""

    def __init__(self, c: LlamaConfig, ranks: int, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.config = c
        self.embed = nn.Parameter(torch.zeros(c.vocab_size, c.hidden_size, dtype=dtype), requires_grad=False)
        self.layers = nn.ModuleList(Layer(c, ranks, dtype) for _ in range(c.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(c.hidden_size, dtype=dtype), requires_grad=False)
        self.lm_head = nn.Parameter(torch.zeros(c.vocab_size, c.hidden_size, dtype=dtype), requires_grad=False)

    @torch.no_grad()
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        c = self.config
        x = F.embedding(ids, self.embed)
        theta = c.rope_parameters["rope_theta"] if getattr(c, "rope_parameters", None) else c.rope_theta
        frequencies = 1.0 / theta ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        angles = torch.outer(torch.arange(ids.shape[1]).float(), frequencies).repeat(1, 2)
        for layer in self.layers:
            x = layer(x, angles.cos().to(x.dtype), angles.sin().to(x.dtype), c.rms_norm_eps)
        return F.linear(norm(x, self.norm, c.rms_norm_eps), self.lm_head)

    def checkpoint_tensors(self) -> dict[str, torch.Tensor]:
        """This rank's parts under the names of the checkpoint: slices of the fused parameters."""
        named = {
            "model.embed_tokens.weight": self.embed,
            "model.norm.weight": self.norm,
            "lm_head.weight": self.lm_head,
        }
        for number, layer in enumerate(self.layers):
            sizes = [layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim, layer.kv_heads * layer.head_dim]
            q, k, v = tensorbus.split_fused(layer.qkv, sizes)
            gate, up = tensorbus.split_fused(layer.gate_up, [layer.gate_up.shape[0] // 2] * 2)
            parts = {
                "self_attn.q_proj": q,
                "self_attn.k_proj": k,
                "self_attn.v_proj": v,
                "self_attn.o_proj": layer.o,
                "mlp.gate_proj": gate,
                "mlp.up_proj": up,
                "mlp.down_proj": layer.down,
                "input_layernorm": layer.attention_norm,
                "post_attention_layernorm": layer.mlp_norm,
            }
            named |= {f"model.layers.{number}.{name}.weight": part for name, part in parts.items()}
        return named


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def summed(x: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(x)
    return x


def placements(name: str) -> str:
    """How tensor parallelism cuts a tensor of the checkpoint: by rows, by columns, or not at all."""
    if any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
        return "S(0)"
    return "S(1)" if "o_proj" in name or "down_proj" in name else "R"


def serve(steps: int, checkpoints: str | None = None) -> None:
    """Takes every step's weights. ``checkpoints``: the folder to check them against, bit for bit."""
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    engine = Engine(config(), ranks)
    tensorbus.share(engine)

    def layout(name: str, tensor: torch.Tensor) -> tuple[Any, list[str]]:
        return tensorbus.Mesh((ranks,), ("tp",)), [placements(name)]

    weights = tensorbus.Weights("policy", engine.checkpoint_tensors(), role="target", layout=layout)
    assert weights.copied_bytes == 0
    for step in range(1, steps + 1):
        version = weights.recv(timeout=120)
        assert version == step, (version, step)
        logits = engine(tokens(step))
        if checkpoints is not None:
            check(engine, logits, step, torch.load(os.path.join(checkpoints, f"step-{step}.pt")))
        if dist.get_rank() == 0:
            verified = "" if checkpoints is None else ", every bit verified"
            print(f"engine: version {version}, mean logit {logits.float().mean().item():+.6f}{verified}")
    weights.close()
    dist.destroy_process_group()


def check(engine: Engine, logits: torch.Tensor, step: int, whole: dict[str, torch.Tensor]) -> None:
    """Every slice is the whole tensor's, cast; and a second engine that was loaded from it says the same."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    second = Engine(config(), ranks)
    own, other = engine.checkpoint_tensors(), second.checkpoint_tensors()
    assert own.keys() == whole.keys(), own.keys() ^ whole.keys()
    for name, tensor in whole.items():
        cut = {"S(0)": 0, "S(1)": 1}.get(placements(name))
        expected = (tensor if cut is None else tensor.chunk(ranks, dim=cut)[rank]).to(torch.bfloat16)
        assert torch.equal(own[name], expected), f"step {step}: {name} differs on rank {rank}"
        other[name].copy_(expected)
    loaded = Engine(config(), ranks)
    loaded.load_state_dict(second.state_dict())
    assert torch.equal(loaded(tokens(step)), logits), f"step {step}: logits differ on rank {rank}"
