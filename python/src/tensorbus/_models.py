"""The tensors of a model: their names as both sides know them, and how each lies."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._cuda import CudaAllocation
from ._layouts import cut_dimension, is_partial, layout_message, placement_text
from ._places import rank_list
from ._tensors import Slot, is_dtensor
from .errors import TensorBusError, add_note, make_error
from .messages import NamedSlot

# What wrappers put before the names of a module's parameters.
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_DDP = "module."
_PEFT = re.compile(r"(^|\.)(lora_[AB]|lora_embedding_[AB]|base_layer|modules_to_save|ia3_l)(\.|$)")

# Mesh and placements, and the whole tensor's shape if it does not follow from the ranks' own.
LayoutOf = Callable[[str, Any], "tuple[Any, Sequence[Any]] | tuple[Any, Sequence[Any], Sequence[int]]"]


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


class Census:
    """Which parts a model had, and how many tensors each, so that every round can look at little cost."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._counted = self._count()

    def _count(self) -> dict[str, Any]:
        if not is_module(self._model):
            return dict.fromkeys(self._model)
        # The module itself: another in its place has other tensors under the same names.
        return {path: (part, len(part._parameters), len(part._buffers)) for path, part in self._model.named_modules()}

    def check(self) -> None:
        """``TB_BATCH_MISMATCH`` if tensors or modules have come or gone since."""
        before, now = self._counted, self._count()
        if before == now:
            return
        names = [name for name in [*before, *now] if before.get(name, _gone) != now.get(name, _gone)]
        changed = [_described(name, before, now) for name in dict.fromkeys(names)]
        message = f"the model has other tensors than were registered: {'; '.join(changed[:4])}"
        error = make_error("TB_BATCH_MISMATCH", message, {"changed": changed})
        add_note(error, "Call refresh() on all ranks of both sides: the model is registered as it is now.")
        raise error


_gone = object()


def _described(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name not in before:
        return f"{name} is new"
    if name not in now:
        return f"{name} is gone"
    (old, *had), (new, *has) = before[name], now[name]
    shown = name or "the module itself"
    if old is not new:
        return f"{shown} is another module"
    return f"{shown} has {has[0]} parameters and {has[1]} buffers, and had {had[0]} and {had[1]}"


class LayoutList:
    """The layouts of a batch, each once."""

    def __init__(
        self,
        offset: int,
        default: tuple[Any, Sequence[Any]],
        layout: LayoutOf | None,
        side: tuple[str, int],
        *,
        rank: int | None = None,
        refuses_partial: bool = False,
    ) -> None:
        self.messages: list[dict[str, Any]] = []
        self._rank = rank
        self._refuses_partial = refuses_partial
        self._numbers: dict[str, int] = {}
        # Most tensors of a model have one of few meshes, which stay as long as this knows them, and of few placements.
        self._known: dict[tuple[int, tuple[str, ...]], tuple[int, list[tuple[str, int]], Any]] = {}
        self._offset = offset
        self._default = default
        self._layout = layout
        self._side = side

    def number_of(self, name: str, tensor: Any, slot: Slot) -> tuple[int, tuple[int, ...] | None]:
        """The number of a tensor's layout, and its whole shape if that is known.

        The layout is a DTensor's own, else what the caller says, else whole on every rank.
        """
        whole: tuple[int, ...] | None = None
        if is_dtensor(tensor):
            mesh, placements, whole = tensor.device_mesh, tensor.placements, tuple(tensor.shape)
        elif self._layout is not None:
            mesh, placements, *shape = _require_layout(name, self._layout(name, tensor))
            whole = tuple(int(size) for size in shape[0]) if shape else None
        else:
            mesh, placements = self._default
        # By their texts: torch finds a strided shard equal to one that is not.
        known = (id(mesh), tuple([placement_text(each) for each in placements]))
        if known not in self._known:
            number = self._number_of(name, mesh, placements)
            cuts = [(text, dim) for text in known[1] if (dim := cut_dimension(text)) is not None]
            self._known[known] = (number, cuts, mesh)
        number, cuts, _ = self._known[known]
        # An array of another library need not have a shape but in its slot.
        count = len(slot.shape if whole is None else whole)
        for text, dim in cuts:
            if not -count <= dim < count:
                message = f"{name} has {count} dimensions, and its placement {text} cuts dimension {dim}"
                raise make_error("TB_PLACEMENT", message, {"tensor": name, "placement": text})
        return number, whole

    def _number_of(self, name: str, mesh: Any, placements: Sequence[Any]) -> int:
        message = layout_message(mesh, placements, self._offset)
        self._require_in_side(name, [rank - self._offset for rank in message["mesh"]["ranks"]])
        if self._refuses_partial and any(is_partial(text) for text in message["placements"]):
            where = f"{name} is received into {', '.join(message['placements'])}"
            raise make_error("TB_PARTIAL_TARGET", f"{where}: a Partial can only be sent", {"tensor": name})
        if any(text.startswith("SS(") for text in message["placements"]):
            # What fully_shard makes of a tensor-parallel module: dimensions are cut in the order of the shards.
            message["stridedShard"] = "order"
        key = repr(message)
        if key not in self._numbers:
            self._numbers[key] = len(self.messages)
            self.messages.append(message)
        return self._numbers[key]

    def _require_in_side(self, name: str, ranks: Sequence[int]) -> None:
        side, size = self._side
        own = rank_list(sorted(ranks))
        if min(ranks) >= 0 and max(ranks) < size:
            if self._rank is None or self._rank in ranks:
                return
            message = f"the mesh of {name} has ranks {own}, and not this one, {self._rank}, which has the tensor"
            error = make_error("TB_MESH", message, {"tensor": name, "ranks": list(ranks), "rank": self._rank})
            add_note(error, "A rank that is not in a tensor's mesh leaves it out: rename gives None for it there.")
            raise error
        message = f"the mesh of {name} has ranks {own}, and side {side} has {size} in all: 0-{size - 1}"
        raise make_error("TB_MESH", message, {"tensor": name, "ranks": list(ranks), "worldSize": size})


def _require_layout(name: str, found: Any) -> Any:
    try:
        parts = tuple(found)
    except TypeError:
        parts = ()
    if len(parts) in (2, 3):
        return parts
    raise TypeError(
        f"layout gives (mesh, placements) or (mesh, placements, whole shape), and gave {found!r} for {name}"
    )


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
    allocations: dict[tuple[int, int], CudaAllocation] = {}
    for own_name, get in tensors.items():
        name = own_name if rename is None else rename(own_name)
        if name is None:
            continue
        if name in owners:
            raise ValueError(f"rename makes {name} of both {owners[name]} and {own_name}")
        owners[name] = own_name
        tensor = get()
        casts = dtype is not None and getattr(getattr(tensor, "dtype", None), "is_floating_point", True)
        slot = Slot(own_name, get, dtype if casts else None, allocations)
        try:
            layout = layouts.number_of(own_name, tensor, slot)
        except (TensorBusError, TypeError) as error:
            add_note(error, f"The tensor is {own_name}.")
            raise
        slots.append(NamedSlot(slot, pair, name, *layout))
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
