"""CUDA memory and events of this process as handles that an agent opens, by the driver's own interface.

A handle stands for a whole allocation (``cudaMalloc`` and what torch's caching allocator cuts up): tensors lie in it at
offsets. Events take the place of synchronising: the agent begins a round once the GPU has come to ``ready``, and the
streams of this process wait for ``free``, so that no call waits for the GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import TensorBusError, add_note, make_error

_HANDLE_BYTES = 64
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_EVENT_FLAGS = 0x2 | 0x4  # CU_EVENT_DISABLE_TIMING, CU_EVENT_INTERPROCESS
_INVALID_VALUE = 1

_Handle = ctypes.c_ubyte * _HANDLE_BYTES
_Uuid = ctypes.c_ubyte * 16

# Addresses are 64 bits wide, contexts, streams and events are pointers.
_FUNCTIONS: dict[str, Sequence[Any]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetUuid_v2": (ctypes.POINTER(_Uuid), ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int),
    "cuCtxGetCurrent": (ctypes.POINTER(ctypes.c_void_p),),
    "cuCtxSetCurrent": (ctypes.c_void_p,),
    "cuPointerGetAttribute": (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64),
    "cuMemGetAddressRange_v2": (ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_size_t), ctypes.c_uint64),
    "cuIpcGetMemHandle": (ctypes.POINTER(_Handle), ctypes.c_uint64),
    "cuIpcGetEventHandle": (ctypes.POINTER(_Handle), ctypes.c_void_p),
    "cuEventCreate": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint),
    "cuEventRecord": (ctypes.c_void_p, ctypes.c_void_p),
    "cuEventDestroy_v2": (ctypes.c_void_p,),
    "cuStreamWaitEvent": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint),
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


class Driver:
    """The functions of libcuda that are needed, and the primary context of each device."""

    def __init__(self) -> None:
        path = os.environ.get("TENSOR_BUS_LIBCUDA") or "libcuda.so.1"
        try:
            library = ctypes.CDLL(path)
            self._functions = {name: getattr(library, name) for name in _FUNCTIONS}
        except (OSError, AttributeError) as cause:
            raise make_error("TB_LIBRARY", f"the CUDA driver {path} cannot be used: {cause}", {"path": path}) from None
        for name, arguments in _FUNCTIONS.items():
            self._functions[name].argtypes = arguments
            self._functions[name].restype = ctypes.c_int
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self.call("cuInit", 0)

    def try_call(self, name: str, *arguments: Any) -> int:
        """The driver's result: 0 if it did what was asked."""
        return int(self._functions[name](*arguments))

    def call(self, name: str, *arguments: Any) -> None:
        result = self.try_call(name, *arguments)
        if result != 0:
            raise self.error(name, result)

    def error(self, name: str, result: int) -> TensorBusError:
        text = ctypes.c_char_p()
        known = self.try_call("cuGetErrorName", result, ctypes.byref(text)) == 0 and text.value is not None
        meaning = text.value.decode() if known and text.value else "unknown"
        return make_error("TB_CUDA", f"{name} failed: {meaning} ({result})", {"call": name, "result": result})

    @contextlib.contextmanager
    def on(self, ordinal: int) -> Iterator[None]:
        """With the device's primary context, which torch works in too, and the thread's own again afterwards."""
        context = self._contexts.get(ordinal)
        if context is None:
            # It is never released: it lives as long as the process anyway.
            context = ctypes.c_void_p()
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device(ordinal))
            self._contexts[ordinal] = context
        before = ctypes.c_void_p()
        self.call("cuCtxGetCurrent", ctypes.byref(before))
        self.call("cuCtxSetCurrent", context)
        try:
            yield
        finally:
            self.call("cuCtxSetCurrent", before)

    def _device(self, ordinal: int) -> int:
        device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), ordinal)
        return device.value

    def uuid(self, ordinal: int) -> str:
        """As ``nvidia-smi -L`` prints it."""
        found = _Uuid()
        self.call("cuDeviceGetUuid_v2", ctypes.byref(found), self._device(ordinal))
        text = bytes(found).hex()
        return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def ordinal_of(self, address: int) -> int:
        """The device of an address."""
        ordinal = ctypes.c_int()
        self.call("cuPointerGetAttribute", ctypes.byref(ordinal), _DEVICE_ORDINAL, address)
        return ordinal.value


@functools.cache
def driver() -> Driver:
    """``TB_LIBRARY`` if there is none."""
    return Driver()


def takes_handles() -> bool:
    """False if CUDA tensors go through a copy in host memory: as ``TENSORBUS_CUDA=copy`` says, or on AMD's GPUs."""
    if os.environ.get("TENSORBUS_CUDA", "handles") == "copy":
        return False
    torch = sys.modules.get("torch")
    return torch is None or getattr(torch.version, "hip", None) is None


@dataclass(frozen=True)
class CudaAllocation:
    """An allocation of a device, as other processes can open it.

    Attributes:
        address: Where it begins in this process.
        size: Its bytes.
        ordinal: The number of its device in this process.
        device: The UUID of the device.
        handle: What the agent opens it by.
    """

    address: int
    size: int
    ordinal: int
    device: str
    handle: bytes

    @property
    def message(self) -> dict[str, Any]:
        """As a command names it."""
        return {"kind": "cuda", "handle": self.handle, "device": self.device, "bytes": self.size}


def find_allocation(address: int, known: dict[tuple[int, int], CudaAllocation]) -> CudaAllocation:
    """The allocation in which an address lies; ``known``: those found already, by where they begin and their size.

    Raises:
        ValueError: There is no handle of this kind of memory.
    """
    cuda = driver()
    ordinal = cuda.ordinal_of(address)
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    with cuda.on(ordinal):
        cuda.call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
        found = known.get((base.value, size.value))
        if found is None:
            handle = _Handle()
            result = cuda.try_call("cuIpcGetMemHandle", ctypes.byref(handle), base.value)
            if result == _INVALID_VALUE:
                raise _no_handle(address)
            if result != 0:
                raise cuda.error("cuIpcGetMemHandle", result)
            found = CudaAllocation(base.value, size.value, ordinal, cuda.uuid(ordinal), bytes(handle))
            known[found.address, found.size] = found
    return found


def _no_handle(address: int) -> TensorBusError:
    error = make_error(
        "TB_UNSUPPORTED",
        "this memory of the GPU was mapped piece by piece (cuMemMap) or comes from a pool: CUDA has no handle of it",
        {"address": address},
    )
    add_note(
        error,
        "For torch set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False and leave backend:cudaMallocAsync out; "
        "in vLLM leave enable_sleep_mode out; or set TENSORBUS_CUDA=copy to go through host memory.",
    )
    return error


class EventPair:
    """The two events of one registration on one device.

    Attributes:
        message: Their handles, as the first region of the device names them.
    """

    def __init__(self, ordinal: int) -> None:
        cuda = driver()
        self.ordinal = ordinal
        made: list[int] = []
        with cuda.on(ordinal):
            try:
                for _ in range(2):
                    event = ctypes.c_void_p()
                    cuda.call("cuEventCreate", ctypes.byref(event), _EVENT_FLAGS)
                    made.append(event.value or 0)
                self.message = {
                    name: _event_handle(cuda, event) for name, event in zip(("ready", "free"), made, strict=True)
                }
            except BaseException:
                _destroy(made, ordinal, os.getpid())
                raise
        self._ready, self._free = made
        weakref.finalize(self, _destroy, made, ordinal, os.getpid())

    def record_ready(self, stream: int) -> None:
        """What is in the stream by now comes before the next round."""
        cuda = driver()
        with cuda.on(self.ordinal):
            cuda.call("cuEventRecord", self._ready, stream)

    def wait_free(self, stream: int) -> None:
        """What comes into the stream from now on comes after the round that has ended."""
        cuda = driver()
        with cuda.on(self.ordinal):
            cuda.call("cuStreamWaitEvent", stream, self._free, 0)


def wait_free(pairs: Sequence[EventPair]) -> None:
    """What comes into the current streams from now on comes after the round, however that has ended."""
    for pair in pairs:
        pair.wait_free(current_stream(pair.ordinal))


def _event_handle(cuda: Driver, event: int) -> bytes:
    handle = _Handle()
    cuda.call("cuIpcGetEventHandle", ctypes.byref(handle), event)
    return bytes(handle)


def _destroy(events: list[int], ordinal: int, pid: int) -> None:
    # CUDA does not outlive a fork.
    if os.getpid() != pid:
        return
    with contextlib.suppress(TensorBusError), driver().on(ordinal):
        for event in events:
            driver().try_call("cuEventDestroy_v2", event)


def current_stream(ordinal: int) -> int:
    """The stream that torch puts work into now; the default one without torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.current_stream(ordinal).cuda_stream)
