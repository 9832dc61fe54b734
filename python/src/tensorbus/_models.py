"""The tensors of a model: their names as both sides know them, and how each lies."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._layouts import layout_message
from ._tensors import Slot, is_dtensor
from .errors import add_note, make_error
from .messages import NamedSlot

# What wrappers put before the names of a module's parameters.
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_DDP = "module."
_PEFT = re.compile(r"(^|\.)(lora_[AB]|lora_embedding_[AB]|base_layer|modules_to_save|ia3_l)(\.|$)")

LayoutOf = Callable[[str, Any], tuple[Any, Sequence[Any]]]


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers put before it."""
    while True:
        stripped = _WRAPPERS.sub(r"\1", name)
        if stripped == name:
            return name
        name = stripped


def is_module(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def model_tensors(model: Any, buffers: str, tied_once: bool) -> dict[str, Callable[[], Any]]:
    """How each tensor of a module, or of a mapping, is asked for: every round, since another may take its place."""
    if buffers not in ("persistent", "all", "none"):
        raise ValueError(f'buffers is "persistent", "all" or "none", not {buffers!r}')
    if not is_module(model):
        if not isinstance(model, Mapping):
            raise TypeError(f"a model is a torch module or a mapping of names to tensors, not {type(model).__name__}")
        return {str(name): lambda name=name: model[name] for name in model}  # type: ignore[misc]
    found: dict[str, Callable[[], Any]] = {}
    for name, owner, attribute in _module_tensors(model, buffers, tied_once):
        if _PEFT.search(name):
            error = make_error("TB_UNSUPPORTED", f"parameter {name} belongs to an adapter of PEFT", {"tensor": name})
            add_note(
                error, "Send merged weights: model.merge_and_unload(), or a mapping of names to tensors of your own."
            )
            raise error
        found[name] = lambda owner=owner, attribute=attribute: getattr(owner, attribute)  # type: ignore[misc]
    return found


def _module_tensors(model: Any, buffers: str, tied_once: bool) -> list[tuple[str, Any, str]]:
    strip_ddp = type(model).__name__ in ("DistributedDataParallel", "DataParallel")
    tensors = []
    seen: set[int] = set()
    for path, owner in model.named_modules(remove_duplicate=False):
        members = list(owner._parameters.items())
        if buffers != "none":
            transient = set() if buffers == "all" else owner._non_persistent_buffers_set
            members += [(name, value) for name, value in owner._buffers.items() if name not in transient]
        for attribute, value in members:
            if value is None or (tied_once and id(value) in seen):
                continue
            seen.add(id(value))
            name = plain_name(f"{path}.{attribute}" if path else attribute)
            tensors.append((name.removeprefix(_DDP) if strip_ddp else name, owner, attribute))
    return tensors


class LayoutList:
    """The layouts of a batch, each once."""

    def __init__(self, offset: int, default: tuple[Any, Sequence[Any]], layout: LayoutOf | None) -> None:
        self.messages: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}
        self._offset = offset
        self._default = default
        self._layout = layout

    def number_of(self, name: str, tensor: Any) -> int:
        """The number of a tensor's layout: a DTensor's own, else what the caller says, else whole on every rank."""
        if is_dtensor(tensor):
            mesh, placements = tensor.device_mesh, tensor.placements
        elif self._layout is not None:
            mesh, placements = self._layout(name, tensor)
        else:
            mesh, placements = self._default
        message = layout_message(mesh, placements, self._offset)
        if any(text.startswith("SS(") for text in message["placements"]):
            # What fully_shard makes of a tensor-parallel module: dimensions are cut in the order of the shards.
            message["stridedShard"] = "order"
        key = repr(message)
        if key not in self._numbers:
            self._numbers[key] = len(self.messages)
            self.messages.append(message)
        return self._numbers[key]


def named_slots(
    tensors: Mapping[str, Callable[[], Any]],
    pair: str,
    layouts: LayoutList,
    rename: Callable[[str], str | None] | None,
    dtype: str | None,
) -> list[NamedSlot]:
    """The slots of a model's tensors, under the names that the other side knows."""
    slots: list[NamedSlot] = []
    owners: dict[str, str] = {}
    for own_name, get in tensors.items():
        name = own_name if rename is None else rename(own_name)
        if name is None:
            continue
        if name in owners:
            raise ValueError(f"rename makes {name} of both {owners[name]} and {own_name}")
        owners[name] = own_name
        tensor = get()
        casts = dtype is not None and getattr(getattr(tensor, "dtype", None), "is_floating_point", True)
        slot = Slot(own_name, get, dtype if casts else None)
        shape = tuple(tensor.shape) if is_dtensor(tensor) else None
        slots.append(NamedSlot(slot, pair, name, layouts.number_of(own_name, tensor), shape))
    if not slots:
        raise ValueError("a model without tensors: nothing to send or receive")
    return slots


def split_fused(tensor: Any, sizes: Sequence[int], dim: int = 0) -> tuple[Any, ...]:
    """The parts of a fused parameter, such as query, key and value, as views of it.

    Args:
        tensor: This rank's part of the fused parameter: torch's or numpy's.
        sizes: What each part has of ``dim`` on this rank.
        dim: The dimension in which they lie one behind the other.
    """
    if sum(sizes) != tensor.shape[dim]:
        raise ValueError(f"parts of {list(sizes)} do not make {tensor.shape[dim]}, the size of dimension {dim}")
    parts, at = [], 0
    for size in sizes:
        index = [slice(None)] * len(tensor.shape)
        index[dim] = slice(at, at + size)
        parts.append(tensor.detach()[tuple(index)] if hasattr(tensor, "detach") else tensor[tuple(index)])
        at += size
    return tuple(parts)
