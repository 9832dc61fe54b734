"""A weight-transfer engine for vLLM, to start from. It has NOT been run with vLLM: see README.md.

vLLM keeps the parameters of a rank as plain tensors, some of them fused. This file names the slices as a checkpoint
does, says how tensor parallelism cuts them, and receives into them. It knows dense models of the Llama kind: Llama,
Qwen2, Qwen3, Mistral.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorbus

# The interface that this was written against: vllm/distributed/weight_transfer/base.py in vLLM's repository.
NEEDED = ("init_transfer_engine", "start_weight_update", "finish_weight_update", "receive_weights", "shutdown")

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")
COLUMNS = ("o_proj", "down_proj")


def placement_of(name: str) -> str:
    """How tensor parallelism cuts a tensor of the checkpoint: by rows, by columns, or not at all."""
    if any(f"{part}." in name for part in ROWS):
        return "S(0)"
    # The bias of a layer that is cut by columns is whole on every rank.
    return "S(1)" if any(f"{part}.weight" in name for part in COLUMNS) else "R"


def checkpoint_tensors(model: Any, heads: int, kv_heads: int, tp_size: int) -> dict[str, Any]:
    """A rank's parameters under the names of the checkpoint: slices of the fused ones.

    Args:
        model: vLLM's module of this rank.
        heads: Attention heads of the whole model.
        kv_heads: Key-value heads of the whole model; at least ``tp_size``, since vLLM repeats them beyond.
        tp_size: Ranks of tensor parallelism.
    """
    if kv_heads % tp_size or heads % tp_size:
        raise ValueError(f"{heads} heads and {kv_heads} key-value heads do not divide by {tp_size} ranks")
    named: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        fused = re.search(r"\.(qkv_proj|gate_up_proj)\.", name)
        if fused is None:
            named[name] = parameter
            continue
        parts = FUSED[fused[1]]
        shares = [heads, kv_heads, kv_heads] if fused[1] == "qkv_proj" else [1, 1]
        rows = parameter.shape[0]
        slices = tensorbus.split_fused(parameter, [rows * share // sum(shares) for share in shares])
        named |= {name.replace(fused[1], part): piece for part, piece in zip(parts, slices, strict=True)}
    return named


@dataclass
class InitInfo:
    """What the trainer's job sends once: the names of the model and of the sides."""

    name: str = "policy"
    me: str = "engine"
    peer: str = "trainer"


@dataclass
class UpdateInfo:
    """What the trainer's job sends for each update: nothing but that there is one."""

    timeout: float = 300.0


def make_engine() -> type:
    """The engine's class, made when vLLM is there.

    Raises:
        RuntimeError: vLLM is missing, or its interface is another than this was written against.
    """
    try:
        from vllm.distributed.weight_transfer.base import WeightTransferEngine
    except ImportError as cause:
        raise RuntimeError("this needs a vLLM that has vllm.distributed.weight_transfer") from cause
    lacking = [name for name in NEEDED if not hasattr(WeightTransferEngine, name)]
    if lacking:
        raise RuntimeError(f"this vLLM's weight-transfer engines are others: they lack {', '.join(lacking)}")

    class TensorBusEngine(WeightTransferEngine):  # type: ignore[misc,valid-type]
        init_info_cls = InitInfo
        update_info_cls = UpdateInfo
        weights: tensorbus.Weights | None = None

        def init_transfer_engine(self, init_info: InitInfo) -> None:
            parallel, text = self.parallel_config, self.model_config.hf_text_config
            ranks = parallel.tensor_parallel_size
            kv_heads = getattr(text, "num_key_value_heads", text.num_attention_heads)
            tensors = checkpoint_tensors(self.model, text.num_attention_heads, kv_heads, ranks)
            self.weights = tensorbus.Weights(
                init_info.name,
                tensors,
                role="target",
                me=init_info.me,
                peer=init_info.peer,
                rank=parallel.rank,
                world_size=parallel.world_size,
                layout=lambda name, tensor: (tensorbus.Mesh((ranks,), ("tp",)), [placement_of(name)]),
                match="target",
            )

        def start_weight_update(self) -> None:
            """Nothing to prepare: weights are received in place."""

        def receive_weights(self, update_info: UpdateInfo) -> None:
            assert self.weights is not None, "init_transfer_engine comes first"
            self.weights.recv(timeout=update_info.timeout)

        def finish_weight_update(self) -> None:
            """Nothing to finish: weights were received in place."""

        def shutdown(self) -> None:
            if self.weights is not None:
                self.weights.close()

        @staticmethod
        def trainer_send_weights(iterator: Iterator[Any], trainer_args: Any) -> None:
            raise NotImplementedError("the trainer calls tensorbus.Weights(...).send() on every rank")

    return TensorBusEngine
