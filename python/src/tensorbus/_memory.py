"""Shared memory that an agent maps: sealed memfds, and which of them an address lies in."""

from __future__ import annotations

import bisect
import contextlib
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
        descriptor = _open_memory(name)
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


def _open_memory(name: str) -> int:
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as cause:
        if cause.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise make_error("TB_SYSTEM", f"no more shared memory can be made: {cause.strerror} (ulimit -n)") from None


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

# Small tensors share memory, so that descriptors and mappings grow with bytes and not with tensors: each piece is twice
# as large as the last, and not for tensors that would take more than this share of it.
_FIRST_ARENA = 1 << 20
_LARGEST_ARENA = 1 << 26
_SHARE = 8


class _Arena:
    """The memory that the next small tensors go to. A full one is left to what lies in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory: SharedMemory | None = None
        self._used = 0
        self._next = _FIRST_ARENA

    def place(self, size: int) -> tuple[SharedMemory, int]:
        if size * _SHARE > self._next:
            return SharedMemory(size), 0
        with self._lock:
            if self._memory is None or self._used + size > len(self._memory):
                self._memory, self._used = SharedMemory(self._next), 0
                self._next = min(self._next * 2, _LARGEST_ARENA)
            offset = self._used
            self._used += align(max(size, 1))
            return self._memory, offset

    def leave(self) -> None:
        """The next tensors go to other memory."""
        with self._lock:
            self._memory = None

    def leave_after_fork(self) -> None:
        """Both processes would hand out the same bytes; a thread that is not in the child may have held the lock."""
        self._lock = threading.Lock()
        self._memory = None


_arena = _Arena()
with contextlib.suppress(AttributeError):
    os.register_at_fork(after_in_child=_arena.leave_after_fork)


def place_tensor(size: int) -> tuple[SharedMemory, int]:
    """Zeroed shared memory of a tensor, and where in it the tensor begins."""
    return _arena.place(size)


def leave_arena() -> None:
    """Small tensors that are made from here on share no memory with those before: the agent may have quarantined it."""
    _arena.leave()


def find_memory(address: int, size: int) -> SharedMemory | None:
    """The shared memory in which these bytes lie, if they do."""
    return _registry.find(address, size)


def align(size: int) -> int:
    """The next multiple of ``ALIGNMENT``."""
    return -(-size // ALIGNMENT) * ALIGNMENT
