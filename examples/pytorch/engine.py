"""An engine: tensor parallel on every rank, bfloat16, with the parameters that vLLM has.

Query, key and value are one of them, gate and up another, and the vocabulary is padded and cut.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig

import tensorbus
from model import config, tokens


class Weight(nn.Module):
    """One parameter under the name that engines give it."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*shape, dtype=torch.bfloat16), requires_grad=False)


class Layer(nn.Module):
    def __init__(self, c: LlamaConfig, ranks: int) -> None:
        super().__init__()
        self.head_dim = c.head_dim
        self.heads, self.kv_heads = c.num_attention_heads // ranks, c.num_key_value_heads // ranks
        columns = c.intermediate_size // ranks
        self.self_attn = nn.ModuleDict(
            {
                "qkv_proj": Weight((self.heads + 2 * self.kv_heads) * c.head_dim, c.hidden_size),
                "o_proj": Weight(c.hidden_size, self.heads * c.head_dim),
            }
        )
        self.mlp = nn.ModuleDict(
            {"gate_up_proj": Weight(2 * columns, c.hidden_size), "down_proj": Weight(c.hidden_size, columns)}
        )
        self.input_layernorm = Weight(c.hidden_size)
        self.post_attention_layernorm = Weight(c.hidden_size)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float) -> torch.Tensor:
        sizes = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        qkv = F.linear(norm(x, self.input_layernorm, eps), self.self_attn["qkv_proj"].weight)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in qkv.split(sizes, dim=-1))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, dim=1) for each in (k, v))
        scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        attention = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype)
        x = x + summed(F.linear((attention @ v).transpose(1, 2).flatten(-2), self.self_attn["o_proj"].weight))
        gate_up = F.linear(norm(x, self.post_attention_layernorm, eps), self.mlp["gate_up_proj"].weight)
        gate, up = gate_up.chunk(2, dim=-1)
        return x + summed(F.linear(F.silu(gate) * up, self.mlp["down_proj"].weight))


class Engine(nn.Module):
    """Llama's forward pass, each rank with its heads, its columns and its words."""

    def __init__(self, c: LlamaConfig, ranks: int) -> None:
        super().__init__()
        self.config = c
        self.words = -(-c.vocab_size // 64) * 64 // ranks
        self.model = nn.ModuleDict(
            {
                "embed_tokens": Weight(self.words, c.hidden_size),
                "layers": nn.ModuleList(Layer(c, ranks) for _ in range(c.num_hidden_layers)),
                "norm": Weight(c.hidden_size),
            }
        )
        self.lm_head = Weight(self.words, c.hidden_size)

    @torch.no_grad()
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        c = self.config
        own = ids - dist.get_rank() * self.words
        here = (own >= 0) & (own < self.words)
        x = F.embedding(own.where(here, 0), self.model["embed_tokens"].weight)
        x = summed(x.masked_fill(~here.unsqueeze(-1), 0))
        theta = c.rope_parameters["rope_theta"] if getattr(c, "rope_parameters", None) else c.rope_theta
        frequencies = 1.0 / theta ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        angles = torch.outer(torch.arange(ids.shape[1]).float(), frequencies).repeat(1, 2)
        for layer in self.model["layers"]:
            x = layer(x, angles.cos().to(x.dtype), angles.sin().to(x.dtype), c.rms_norm_eps)
        logits = F.linear(norm(x, self.model["norm"], c.rms_norm_eps), self.lm_head.weight)
        parts = [torch.empty_like(logits) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, logits)
        return torch.cat(parts, dim=-1)[..., : c.vocab_size]


def norm(x: torch.Tensor, by: Weight, eps: float) -> torch.Tensor:
    wide = x.float()
    return by.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def summed(x: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(x)
    return x


def serve(steps: int, checkpoints: str | None = None) -> None:
    """Takes every step's weights. ``checkpoints``: the folder to check them against, bit for bit."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    engine = Engine(config(), ranks)
    tensorbus.share(engine)

    # Which tensor of the checkpoint lies where in which parameter: the preset says it, as for vLLM itself.
    parts = tensorbus.preset_parts(config(), f"vllm:tp={ranks}", rank=rank)
    tensors = parts.views(dict(engine.named_parameters()))
    weights = tensorbus.Weights("policy", tensors, role="target", layout=parts.layout)
    assert weights.copied_bytes == 0
    for step in range(1, steps + 1):
        version = weights.recv(timeout=120)
        assert version == step, (version, step)
        logits = engine(tokens(step))
        if checkpoints is not None:
            check(engine, logits, step, torch.load(os.path.join(checkpoints, f"step-{step}.pt")))
        if rank == 0:
            verified = "" if checkpoints is None else ", every bit verified"
            print(f"engine: version {version}, mean logit {logits.float().mean().item():+.6f}{verified}")
    weights.close()
    dist.destroy_process_group()


def check(engine: Engine, logits: torch.Tensor, step: int, whole: dict[str, torch.Tensor]) -> None:
    """Every parameter is what is cut by hand from the whole tensors; an engine loaded from that says the same."""
    expected = by_hand(whole, engine.words)
    own = engine.state_dict()
    assert own.keys() == expected.keys(), own.keys() ^ expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(own[name], tensor), f"step {step}: {name} differs on rank {dist.get_rank()}"
    loaded = Engine(config(), dist.get_world_size())
    loaded.load_state_dict(expected)
    assert torch.equal(loaded(tokens(step)), logits), f"step {step}: logits differ on rank {dist.get_rank()}"


def by_hand(whole: dict[str, torch.Tensor], words: int) -> dict[str, torch.Tensor]:
    """What people write without presets: which slices of the checkpoint make this rank's parameters."""
    rank, ranks = dist.get_rank(), dist.get_world_size()

    def cut(name: str, dim: int) -> torch.Tensor:
        return whole[f"{name}.weight"].chunk(ranks, dim=dim)[rank]

    def fused(*names: str) -> torch.Tensor:
        return torch.cat([cut(name, 0) for name in names])

    made = {}
    for name in ("model.embed_tokens", "lm_head"):
        rows = whole[f"{name}.weight"][rank * words : (rank + 1) * words]
        made[name] = F.pad(rows, (0, 0, 0, words - rows.shape[0]))
    for number in range(config().num_hidden_layers):
        at = f"model.layers.{number}"
        attention, mlp = f"{at}.self_attn", f"{at}.mlp"
        made[f"{attention}.qkv_proj"] = fused(*(f"{attention}.{name}_proj" for name in "qkv"))
        made[f"{attention}.o_proj"] = cut(f"{attention}.o_proj", 1)
        made[f"{mlp}.gate_up_proj"] = fused(f"{mlp}.gate_proj", f"{mlp}.up_proj")
        made[f"{mlp}.down_proj"] = cut(f"{mlp}.down_proj", 1)
    for name, tensor in whole.items():
        if "norm" in name:
            made[name.removesuffix(".weight")] = tensor
    return {f"{name}.weight": tensor.to(torch.bfloat16) for name, tensor in made.items()}
