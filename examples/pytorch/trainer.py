"""A trainer: FSDP2 on every rank, float32, and its weights sent to the engine after every optimizer step."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import tensorbus
from model import make_model, tokens


def train(steps: int, checkpoints: str | None = None) -> None:
    """Trains, and hands over. ``checkpoints``: a folder for what the engine checks itself against."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp",))
    model = make_model()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    tensorbus.share(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    weights = tensorbus.Weights("policy", model, role="source")
    for step in range(1, steps + 1):
        batch = tokens(100 * step + dist.get_rank())
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if checkpoints is not None:
            save(model, os.path.join(checkpoints, f"step-{step}.pt"))
        weights.send(version=step)
        if dist.get_rank() == 0:
            print(f"trainer: step {step}, loss {loss.item():.4f}, sent in {weights.statistics['seconds'] * 1e3:.1f} ms")
    weights.close()
    dist.destroy_process_group()


def save(model: torch.nn.Module, path: str) -> None:
    """The whole model, gathered: what tensorbus saves a job from, and what its result is compared with."""
    whole = {name: value.full_tensor() for name, value in model.state_dict().items()}
    if dist.get_rank() == 0:
        torch.save(whole, path)
    dist.barrier()
