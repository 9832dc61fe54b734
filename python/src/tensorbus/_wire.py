"""Frames, sockets and descriptors: ``docs/client-protocol.md``."""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack

from .errors import make_error

PROTOCOL = (1, 1)
_LENGTH = struct.Struct("<I")
_NUMBER = struct.Struct("<Q")
# What sun_path holds, with the zero behind it: unix(7).
_MAX_PATH_BYTES = 107


def encode(message: dict[str, Any]) -> bytes:
    """A frame of a message."""
    body: bytes = msgpack.packb(message, use_bin_type=True)
    return _LENGTH.pack(len(body)) + body


def decode(data: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """The messages of the whole frames in some bytes, and the bytes behind them."""
    frames, at = [], 0
    for start, end in _spans(data):
        frames.append(msgpack.unpackb(data[start:end], raw=False, strict_map_key=False))
        at = end
    return frames, data[at:]


def _spans(data: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while len(data) - at >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if len(data) - at < length:
            return
        yield at, at + length
        at += length


def descriptors_path(path: str) -> str:
    """The socket for descriptors beside a client socket."""
    return (path[: -len(".sock")] if path.endswith(".sock") else path) + ".fds"


def connect(path: str, timeout: float) -> socket.socket:
    """A connection to a Unix socket, however long its path is. Blocks for ``timeout`` seconds at most."""
    if not hasattr(socket, "AF_UNIX"):
        raise make_error("TB_UNSUPPORTED", "an agent is reached by a Unix socket, which this system does not have")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = -1
    try:
        made.settimeout(max(timeout, 0.001))
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            head, tail = os.path.split(path)
            folder = os.open(head, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            path = f"/proc/self/fd/{folder}/{tail}"
        made.connect(path)
        made.setblocking(False)
        return made
    except BaseException:
        made.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)


def send_descriptors(to: socket.socket, number: int, descriptors: Sequence[int]) -> None:
    """One hand-over. ``BlockingIOError`` if the agent has to take others first."""
    rights = array.array("i", descriptors)
    to.sendmsg([_NUMBER.pack(number)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def receive_descriptor(source: socket.socket) -> int | None:
    """The descriptor of a message that lends one; ``None`` at the end of the connection."""
    size = array.array("i").itemsize
    data, ancillary, _, _ = source.recvmsg(1, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(content) >= size:
            return array.array("i", content[:size])[0]
    if not data:
        return None
    raise OSError("a message that lends no descriptor")


def read_word(descriptor: int) -> int:
    """The word of a heartbeat."""
    (word,) = _NUMBER.unpack(os.pread(descriptor, _NUMBER.size, 0))
    return int(word)
