"""Shared memory that an agent maps: sealed memfds, and which of them an address lies in."""

from __future__ import annotations

import bisect
import ctypes
import errno
import mmap
import os
import threading
import weakref
from typing import Any

from .errors import make_error

_F_ADD_SEALS = 1033
_SEALS = 0x1 | 0x2 | 0x4  # SEAL, SHRINK, GROW
# Tensors begin at multiples of it: what vector code, and a cache line, want.
ALIGNMENT = 64


class SharedMemory(mmap.mmap):
    """A memfd of a fixed size, mapped here. What is made on it keeps it; it goes with the last of that."""

    descriptor: int
    address: int
    device: int
    inode: int

    def __new__(cls, size: int, name: str = "tensorbus") -> SharedMemory:
        if not hasattr(os, "memfd_create"):
            raise make_error("TB_UNSUPPORTED", "shared memory for an agent is a sealed memfd, which is Linux's")
        import fcntl

        size = max(size, 1)
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _reserve(descriptor, size)
            fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
            self = super().__new__(cls, descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        self.descriptor = descriptor
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self))
        status = os.fstat(descriptor)
        self.device, self.inode = status.st_dev, status.st_ino
        _registry.add(self)
        return self

    def __init__(self, size: int, name: str = "tensorbus") -> None:
        weakref.finalize(self, _release, self.descriptor, self.address, os.getpid())

    @property
    def message(self) -> dict[str, Any]:
        """As a command names it, but for the descriptor."""
        return {"kind": "shared", "device": self.device, "inode": self.inode, "bytes": len(self)}


def _reserve(descriptor: int, size: int) -> None:
    try:
        os.ftruncate(descriptor, size)
        os.posix_fallocate(descriptor, 0, size)
    except OSError as cause:
        if cause.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG):
            raise
        raise make_error(
            "TB_NO_SPACE", f"there is no room for {size} bytes of shared memory", {"bytes": size}
        ) from cause


def _release(descriptor: int, address: int, pid: int) -> None:
    _registry.remove(address)
    # A child's copy of the descriptor is the child's: it is closed there.
    os.close(descriptor)


class _Registry:
    """The shared memory of this process, by address."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._starts: list[int] = []
        self._memories: list[weakref.ref[SharedMemory]] = []

    def add(self, memory: SharedMemory) -> None:
        with self._lock:
            at = bisect.bisect_left(self._starts, memory.address)
            self._starts.insert(at, memory.address)
            self._memories.insert(at, weakref.ref(memory))

    def remove(self, address: int) -> None:
        with self._lock:
            at = bisect.bisect_left(self._starts, address)
            if at < len(self._starts) and self._starts[at] == address:
                del self._starts[at], self._memories[at]

    def find(self, address: int, size: int) -> SharedMemory | None:
        with self._lock:
            at = bisect.bisect_right(self._starts, address) - 1
            memory = self._memories[at]() if at >= 0 else None
        if memory is None or address + size > memory.address + len(memory):
            return None
        return memory


_registry = _Registry()


def find_memory(address: int, size: int) -> SharedMemory | None:
    """The shared memory in which these bytes lie, if they do."""
    return _registry.find(address, size)


def align(size: int) -> int:
    """The next multiple of ``ALIGNMENT``."""
    return -(-size // ALIGNMENT) * ALIGNMENT
