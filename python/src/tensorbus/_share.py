"""Moves a module's parameters into shared memory, where rounds use them without a copy.

FSDP2 keeps each rank's part of a parameter padded to the size of the largest part. ``Module._apply``, by which
``.to()`` works, lets it take up new memory, and then pads uneven parts into memory that it makes with ``new_zeros``: so
that call is served from shared memory too. What is not as expected stays where it was, and is told.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field
from math import prod
from typing import Any

from ._dtypes import ITEM_SIZES, dtype_name
from ._memory import SharedMemory, align, find_memory
from ._models import is_module, plain_name
from ._tensors import is_dtensor, packed_strides, tensor_on
from .errors import add_note, make_error


@dataclass
class Shared:
    """What ``share`` did.

    Attributes:
        bytes: Bytes of shared memory that the module's tensors have.
        copied: Tensors that stayed where they were, and why: each round copies them.
    """

    bytes: int
    copied: dict[str, str] = field(default_factory=dict)


def share(module: Any) -> Shared:
    """Moves the parameters and buffers of a module on a CPU into shared memory, so that rounds need no copy of them.

    To be called after ``fully_shard``, before an optimizer is made and gradients are there. Values stay as they are.

    Raises:
        RuntimeError: A parameter has a gradient.
    """
    if not is_module(module):
        raise TypeError(
            f"share takes a torch module, not {type(module).__name__}; tensorbus.empty makes single tensors"
        )
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            error = make_error("TB_BUSY", f"parameter {name} has a gradient", {"tensor": name})
            add_note(error, "Call share before the first backward, or after optimizer.zero_grad().")
            raise error
    wanted = _sizes(module)
    if wanted:
        pool = _Pool(sum(wanted))
        with _new_zeros_from(pool):
            module._apply(pool.move)
    return _outcome(module)


def _local(tensor: Any) -> Any:
    return tensor.detach().to_local() if is_dtensor(tensor) else tensor.detach()


def _is_ours(tensor: Any) -> bool:
    size = tensor.numel() * tensor.element_size()
    return size == 0 or find_memory(tensor.data_ptr(), size) is not None


def _can_move(local: Any) -> bool:
    if local.device.type != "cpu" or local.layout is not sys.modules["torch"].strided:
        return False
    return str(local.dtype).removeprefix("torch.") in ITEM_SIZES


def _padded_shape(tensor: Any) -> tuple[int, ...]:
    """What FSDP2 keeps of a DTensor's part: all parts have the size of the largest."""
    local = tuple(_local(tensor).shape)
    if not is_dtensor(tensor):
        return local
    for dimension, placement in enumerate(tensor.placements):
        if type(placement).__name__ != "Shard":
            continue
        ranks = tensor.device_mesh.size(dimension)
        rows = -(-tensor.shape[placement.dim] // ranks)
        if len(tensor.placements) == 1 and local[placement.dim] != rows:
            return (*local[: placement.dim], rows, *local[placement.dim + 1 :])
    return local


def _tensors(module: Any) -> list[tuple[str, Any]]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return [(plain_name(name), tensor) for name, tensor in named]


def _sizes(module: Any) -> list[int]:
    sizes = []
    for _, tensor in _tensors(module):
        local = _local(tensor)
        if _can_move(local) and not _is_ours(local):
            sizes.append(align(prod(_padded_shape(tensor)) * local.element_size()))
    return sizes


class _Pool:
    """Shared memory, given out from its beginning; a second piece if the first was reckoned too small."""

    def __init__(self, size: int) -> None:
        self._memory = SharedMemory(size, "tensorbus-module")
        self._at = 0

    def take(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A tensor of zeros."""
        name = dtype_name(dtype)
        size = align(prod(shape) * ITEM_SIZES[name])
        if self._at + size > len(self._memory):
            self._memory, self._at = SharedMemory(size, "tensorbus-module"), 0
        tensor = tensor_on(self._memory, self._at, shape, packed_strides(shape), name, as_torch=True)
        self._at += size
        return tensor

    def move(self, tensor: Any) -> Any:
        """What ``Module._apply`` asks for each tensor."""
        local = _local(tensor)
        if local.numel() and _is_ours(local):
            return tensor.detach()
        if _padded_shape(tensor) != tuple(local.shape):
            # Memory that is new to FSDP2 is padded by new_zeros, right after this.
            return tensor.detach().clone()
        if not _can_move(local):
            return tensor.detach()
        moved = self.take(tuple(local.shape), local.dtype)
        moved.copy_(local)
        if not is_dtensor(tensor):
            return moved
        dtensor = sys.modules["torch.distributed.tensor"].DTensor
        return dtensor.from_local(
            moved, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )


def _new_zeros_from(pool: _Pool) -> Any:
    """A mode in which ``Tensor.new_zeros`` gives shared memory."""
    torch = sys.modules["torch"]
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):  # type: ignore[misc,unused-ignore]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.Tensor.new_zeros and not kwargs and args[0].device.type == "cpu":
                size = args[1] if len(args) == 2 and not isinstance(args[1], int) else args[1:]
                return pool.take(tuple(int(each) for each in size), args[0].dtype)
            return func(*args, **kwargs)

    return Mode()


def _outcome(module: Any) -> Shared:
    found = Shared(0)
    for name, tensor in _tensors(module):
        local = _local(tensor)
        if _is_ours(local):
            found.bytes += local.numel() * local.element_size()
        elif local.device.type != "cpu":
            found.copied[name] = f"it is on {local.device}"
        elif not _can_move(local):
            found.copied[name] = f"it is {local.dtype}, {local.layout}"
        else:
            found.copied[name] = "another tensor was put in its place"
    unexpected = [name for name, why in found.copied.items() if why.startswith("another")]
    if unexpected:
        warnings.warn(
            f"{len(unexpected)} tensors could not be moved into shared memory ({unexpected[0]}, …): rounds copy them. "
            "This version of torch keeps them otherwise than tensorbus expects",
            RuntimeWarning,
            stacklevel=3,
        )
    return found
