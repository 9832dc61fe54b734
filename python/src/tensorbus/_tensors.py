"""Tensors of the caller: torch's (DTensors by their local part), numpy's, what speaks DLPack on a CPU, and other
libraries' arrays on a GPU (``__cuda_array_interface__``).

A tensor in our shared memory, or on a GPU, is used where it lies. Any other has a copy in shared memory: written before
a send, read back after a receive. Every round looks at its tensors again, since a module may have put others in their
place.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from ._cuda import CudaAllocation, find_allocation, takes_handles
from ._dtypes import ITEM_SIZES, NUMBERS, dtype_name
from ._memory import SharedMemory, align, find_memory, place_tensor
from .errors import TensorBusError, add_note, make_error


def is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_dtensor(value: Any) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def is_numpy(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def local_tensor(value: Any) -> Any:
    """The part of a tensor that lies on this rank: a torch tensor without gradient, or a numpy array."""
    if is_dtensor(value):
        value = value.to_local()
    if is_torch(value):
        wait = getattr(value, "wait", None)
        plain = wait() if callable(wait) and type(value).__name__ == "AsyncCollectiveTensor" else value
        return plain.detach()
    if is_numpy(value) or is_cuda_array(value):
        return value
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(value)
    raise TypeError(f"a tensor is torch's, numpy's, or speaks DLPack; {type(value).__name__} does not")


def is_cuda_array(value: Any) -> bool:
    """An array on a GPU of another library than torch."""
    return not is_torch(value) and hasattr(value, "__cuda_array_interface__")


def _from_dlpack(value: Any) -> Any:
    kind = int(value.__dlpack_device__()[0])
    if kind != 1:
        raise make_error(
            "TB_UNSUPPORTED",
            f"a DLPack tensor on device type {kind}: only those on a CPU are taken",
            {"device": kind},
        )
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.from_dlpack(value)
    import numpy

    return numpy.from_dlpack(value)


class Place:
    """The place and the strides of a tensor, in elements."""

    # A model has ten thousands of them: dictionaries of their own are what the collector of garbage walks through.
    __slots__ = ("address", "device", "dtype", "shape", "span", "strides")

    def __init__(self, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], address: int, device: str) -> None:
        self.dtype = dtype
        self.shape = shape
        self.strides = strides
        self.address = address
        self.device = device
        # Bytes from the first element to behind the last.
        self.span = 0
        if 0 not in shape:
            last = 0
            for size, stride in zip(shape, strides, strict=True):
                last += (size - 1) * stride
            self.span = (last + 1) * ITEM_SIZES[dtype]


def place_of(tensor: Any) -> Place:
    """The place of a local tensor."""
    if is_numpy(tensor):
        item = tensor.itemsize
        if any(stride < 0 or stride % item for stride in tensor.strides):
            raise make_error(
                "TB_STRIDES", f"an array with strides of {tensor.strides} bytes", {"strides": tensor.strides}
            )
        address = tensor.__array_interface__["data"][0]
        return Place(
            dtype_name(tensor.dtype),
            tuple(tensor.shape),
            tuple(stride // item for stride in tensor.strides),
            address,
            "cpu",
        )
    if is_cuda_array(tensor):
        return _place_on_gpu(tensor.__cuda_array_interface__)
    if tensor.layout is not sys.modules["torch"].strided:
        raise make_error("TB_UNSUPPORTED", f"a tensor of layout {tensor.layout}: only strided ones travel")
    if tensor.device.type == "meta":
        raise make_error("TB_REGION", "a tensor on the meta device has no memory: move the module to a device first")
    address = tensor.data_ptr() if tensor.numel() else 0
    place = Place(dtype_name(tensor.dtype), tuple(tensor.shape), tuple(tensor.stride()), address, tensor.device.type)
    needed = tensor.storage_offset() * ITEM_SIZES[place.dtype] + place.span
    if place.span and tensor.untyped_storage().nbytes() < needed:
        message = f"a tensor of {place.dtype}{list(place.shape)} whose memory was freed or made smaller"
        raise make_error("TB_REGION", message, {"bytes": tensor.untyped_storage().nbytes(), "needed": needed})
    return place


def _place_on_gpu(interface: dict[str, Any]) -> Place:
    import numpy

    dtype = numpy.dtype(interface["typestr"])
    shape = tuple(int(size) for size in interface["shape"])
    strides = interface.get("strides")
    if strides is None:
        elements = packed_strides(shape)
    elif any(stride < 0 or stride % dtype.itemsize for stride in strides):
        raise make_error("TB_STRIDES", f"an array with strides of {tuple(strides)} bytes", {"strides": tuple(strides)})
    else:
        elements = tuple(stride // dtype.itemsize for stride in strides)
    return Place(dtype_name(dtype), shape, elements, int(interface["data"][0]), "cuda")


def packed_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _sight_of(value: Any) -> tuple[Any, ...] | None:
    """What tells a plain torch tensor from another, at a glance: rounds look at thousands. ``None``: it is no such."""
    torch = sys.modules.get("torch")
    if torch is None or type(value) not in (torch.Tensor, torch.nn.Parameter):
        return None
    # A storage that was freed has no bytes; where it was, another may lie.
    return value.data_ptr(), value.dtype, value.shape, value.stride(), value.untyped_storage().nbytes()


def _why_unfit(local: Any, place: Place) -> str:
    if 0 in place.strides and any(
        stride == 0 < size - 1 for size, stride in zip(place.shape, place.strides, strict=True)
    ):
        return "has elements that share memory, as expand makes them"
    return "is read-only" if is_numpy(local) and not local.flags.writeable else ""


class Slot:
    """A tensor of a batch: who gives it, and the memory that the agent knows."""

    __slots__ = (
        "_get",
        "_seen",
        "_source_dtype",
        "_view",
        "_warned",
        "dtype",
        "is_copied",
        "label",
        "memory",
        "offset",
        "shape",
        "strides",
        "unfit",
    )

    def __init__(
        self,
        label: str,
        get: Callable[[], Any],
        dtype: str | None = None,
        allocations: dict[tuple[int, int], CudaAllocation] | None = None,
    ) -> None:
        self.label = label
        self._get = get
        local, place = self._look()
        self._seen = _sight_of(self.get())
        self.dtype = dtype or place.dtype
        self.shape = place.shape
        self._source_dtype = place.dtype
        # Why nothing can be received into it.
        self.unfit = _why_unfit(local, place)
        self.memory: SharedMemory | CudaAllocation | None = None
        if self.dtype == place.dtype and place.span:
            self.memory = self._memory_at(place, {} if allocations is None else allocations)
        # What has no elements is copied from nowhere.
        if self.memory is None and place.span and is_cuda_array(local):
            raise make_error("TB_UNSUPPORTED", f"{label} is on a GPU, and only torch's tensors are copied from there")
        self.is_copied = self.memory is None
        self.strides = packed_strides(self.shape) if self.memory is None else place.strides
        self.offset = 0 if self.memory is None else place.address - self.memory.address
        self._view: Any = None
        self._warned = False

    def _look(self) -> tuple[Any, Place]:
        try:
            local = local_tensor(self.get())
            return local, place_of(local)
        except (TensorBusError, TypeError) as error:
            add_note(error, f"The tensor is {self.label}.")
            raise

    def get(self) -> Any:
        """The caller's tensor as it is now. ``TB_TENSOR_MISSING`` if the model does not have it any more."""
        try:
            return self._get()
        except (KeyError, AttributeError):
            message = f"the model has no tensor {self.label} any more"
            raise make_error("TB_TENSOR_MISSING", message, {"tensor": self.label}) from None

    def _memory_at(
        self, place: Place, allocations: dict[tuple[int, int], CudaAllocation]
    ) -> SharedMemory | CudaAllocation | None:
        if place.device == "cpu":
            return find_memory(place.address, place.span)
        if place.device != "cuda" or not takes_handles():
            return None
        try:
            return find_allocation(place.address, allocations)
        except TensorBusError as error:
            add_note(error, f"The tensor is {self.label}.")
            raise

    @property
    def bytes(self) -> int:
        """Bytes of it in shared memory."""
        return prod(self.shape) * ITEM_SIZES[self.dtype]

    def place_in(self, memory: SharedMemory, offset: int) -> None:
        """Gives it a place for its copy."""
        self.memory, self.offset = memory, offset

    def check(self) -> tuple[Any, bool]:
        """The tensor as it is now, and whether it has to be copied. An error if it is another kind of tensor."""
        value = self.get()
        if self._seen is not None and _sight_of(value) == self._seen:
            return value.detach(), self.is_copied
        local, place = self._look()
        if place.shape != self.shape or place.dtype != self._source_dtype:
            found, was = f"{place.dtype}{list(place.shape)}", f"{self._source_dtype}{list(self.shape)}"
            message = f"tensor {self.label} is {found} now, and was registered as {was}"
            raise make_error("TB_SHAPE", message, {"tensor": self.label, "found": found, "registered": was})
        if self.is_copied:
            return local, True
        assert self.memory is not None
        moved = place.span != 0 and place.address != self.memory.address + self.offset
        if moved and isinstance(self.memory, CudaAllocation):
            message = f"tensor {self.label} lies elsewhere on the GPU than when it was registered"
            raise make_error("TB_REGION", message, {"tensor": self.label})
        if moved and not self._warned:
            self._warned = True
            warnings.warn(
                f"tensor {self.label} lies no longer in shared memory (another was put in its place): "
                "it is copied every round",
                RuntimeWarning,
                stacklevel=2,
            )
        return local, moved

    def _shared_view(self, like: Any) -> Any:
        """The shared memory of it, as the caller's kind of tensor."""
        if self._view is None:
            assert isinstance(self.memory, SharedMemory)
            self._view = tensor_on(self.memory, self.offset, self.shape, self.strides, self.dtype, is_torch(like))
        return self._view

    def write(self) -> int:
        """Before a send: brings the copy up to date. Bytes that were copied."""
        local, copies = self.check()
        if not copies or self.bytes == 0:
            return 0
        _copy(self._shared_view(local), local)
        return self.bytes

    def read_back(self) -> int:
        """After a receive: brings the tensor up to date. Bytes that were copied."""
        local, copies = self.check()
        if not copies or self.bytes == 0:
            return 0
        _copy(local, self._shared_view(local))
        return self.bytes


def _copy(to: Any, source: Any) -> None:
    if is_torch(to):
        torch = sys.modules["torch"]
        with torch.no_grad():
            to.copy_(source if is_torch(source) else torch.from_numpy(source))
        return
    import numpy

    numpy.copyto(to, source, casting="unsafe")


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        error = make_error("TB_LIBRARY", "tensors in shared memory are made by numpy, which is not installed")
        add_note(error, "pip install numpy")
        raise error from None
    return numpy


def tensor_on(
    memory: SharedMemory | None,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: str,
    as_torch: bool,
) -> Any:
    """A tensor on shared memory, which it keeps."""
    numpy = _numpy()
    assert memory is not None
    item = ITEM_SIZES[dtype]
    span = (
        0 if 0 in shape else (1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))) * item
    )
    raw = numpy.frombuffer(memory, dtype=numpy.uint8, count=span, offset=offset)
    if as_torch:
        torch = sys.modules["torch"]
        flat = (
            torch.from_numpy(raw).view(getattr(torch, dtype)) if span else torch.empty(0, dtype=getattr(torch, dtype))
        )
        return flat.as_strided(tuple(shape), tuple(strides)) if span else flat.reshape(tuple(shape))
    flat = raw.view(numpy_dtype(dtype))
    return numpy.lib.stride_tricks.as_strided(
        flat, tuple(shape), tuple(stride * item for stride in strides), writeable=True
    )


def numpy_dtype(name: str) -> Any:
    """The type of numpy, or of the package ``ml_dtypes`` for those that numpy does not have."""
    import numpy

    if name == "bfloat16" or name.startswith("float8"):
        try:
            import ml_dtypes
        except ImportError as cause:
            message = f"numpy has no {name}: the package ml_dtypes has"
            raise make_error("TB_DTYPE", message, {"dtype": name}) from cause
        return numpy.dtype(getattr(ml_dtypes, name))
    return numpy.dtype(name)


def assign_copies(slots: Sequence[Slot]) -> SharedMemory | None:
    """Gives all tensors that are copied their places, in one piece of shared memory."""
    copied = [slot for slot in slots if slot.is_copied]
    size = sum(align(slot.bytes) for slot in copied)
    if not copied:
        return None
    memory = SharedMemory(size, "tensorbus-copies")
    at = 0
    for slot in copied:
        slot.place_in(memory, at)
        at += align(slot.bytes)
    return memory


def number_of(dtype: str) -> int:
    return NUMBERS[dtype]


def empty(shape: int | Sequence[int], dtype: Any = "float32") -> Any:
    """A tensor in shared memory, which rounds use where it lies: a torch tensor for a torch type, else a numpy array.

    Its elements are zero. Views of it are in shared memory too.
    """
    name = dtype_name(dtype)
    sizes = (shape,) if isinstance(shape, int) else tuple(int(size) for size in shape)
    memory, offset = place_tensor(prod(sizes) * ITEM_SIZES[name])
    return tensor_on(memory, offset, sizes, packed_strides(sizes), name, type(dtype).__module__ == "torch")
