"""The commands of a client, as objects: each with the time it was made and the name of its semaphore."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ._cuda import EventPair
from ._dtypes import NUMBERS
from ._memory import SharedMemory
from ._tensors import Slot

__all__ = [
    "CleanupBatch",
    "InitPair",
    "Message",
    "QueryStatus",
    "RegisterTensors",
    "Transfer",
    "generate_semaphore_name",
]

# NAME_MAX less the "sem." that Linux puts before it, and with the slash that it takes away: sem_overview(7).
_MAX_NAME_BYTES = 252
_unique = itertools.count(1)
_process: tuple[int, str] = (0, "")


def generate_semaphore_name(command_type: str, context_id: object) -> str:
    """``/command_<type>_<context>_<pid>_<unique>``: valid as the name of a POSIX semaphore, and never given twice."""
    global _process
    if _process[0] != os.getpid():
        _process = (os.getpid(), secrets.token_hex(8))
    tail = f"_{_process[0]}_{_process[1]}{next(_unique):x}"
    head = f"/command_{_plain(command_type)}_{_plain(str(context_id))}"
    room = _MAX_NAME_BYTES - len(tail)
    return head.encode()[:room].decode(errors="ignore") + tail


def _plain(text: str) -> str:
    return re.sub(r"[/:\s\x00-\x1f\x7f-\x9f\ud800-\udfff]", "_", text)


@dataclass
class Message:
    """What all commands have."""

    timestamp: float = field(default_factory=time.time, kw_only=True)
    semaphore_name: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if not self.semaphore_name:
            self.semaphore_name = generate_semaphore_name(type(self).__name__, self.context)

    @property
    def context(self) -> object:
        """What the semaphore's name shows."""
        return ""

    @property
    def body(self) -> dict[str, Any]:
        """As it travels."""
        raise NotImplementedError


@dataclass
class InitPair(Message):
    """Registers one side of a pair."""

    pair_name: str
    local_name: str
    remote_name: str
    expected_world_size: int
    layout: dict[str, Any] | str | None = None

    @property
    def context(self) -> object:
        return self.pair_name

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "pair": self.pair_name,
            "local": self.local_name,
            "remote": self.remote_name,
            "worldSize": self.expected_world_size,
        }
        if self.layout is not None:
            body["layout"] = self.layout
        return body


@dataclass(slots=True)
class NamedSlot:
    """A tensor of a command: its slot, its pair, and what it is called there."""

    slot: Slot
    pair: str
    name: str
    # Index in the command's layouts; None: that of the pair.
    layout: int | None = None
    global_shape: tuple[int, ...] | None = None


@dataclass
class RegisterTensors(Message):
    """Hands tensors to the agent."""

    batch_id: str | int
    tensors: Sequence[NamedSlot] = ()
    bucket_size: int | None = None
    commit: str | None = None
    match: str | None = None
    layouts: Sequence[dict[str, Any]] = ()
    events: dict[int, EventPair] = field(default_factory=dict)

    @property
    def context(self) -> object:
        return self.batch_id

    def regions(self) -> tuple[list[dict[str, Any]], list[int], dict[int, int]]:
        """The regions as they travel, their descriptors, and the region of a memory by its ``id``."""
        regions: list[dict[str, Any]] = []
        descriptors: list[int] = []
        index: dict[int, int] = {}
        devices: set[int] = set()
        for named in self.tensors:
            memory = named.slot.memory
            assert memory is not None
            if id(memory) in index:
                continue
            index[id(memory)] = len(regions)
            if isinstance(memory, SharedMemory):
                regions.append({**memory.message, "fd": len(descriptors)})
                descriptors.append(memory.descriptor)
                continue
            region = memory.message
            if memory.ordinal in self.events and memory.ordinal not in devices:
                # One region of a device stands for all: they have the same events.
                devices.add(memory.ordinal)
                region |= self.events[memory.ordinal].message
            regions.append(region)
        return regions, descriptors, index

    @property
    def body(self) -> dict[str, Any]:
        regions, _, index = self.regions()
        body: dict[str, Any] = {"batch": self.batch_id, "regions": regions, "tensors": self._table(index)}
        if self.bucket_size is not None:
            body["bucketBytes"] = self.bucket_size
        if self.commit is not None:
            body["commit"] = self.commit
        if self.match is not None:
            body["match"] = self.match
        if self.layouts:
            body["layouts"] = list(self.layouts)
        return body

    def _table(self, regions: dict[int, int]) -> dict[str, Any]:
        pairs = dict.fromkeys(named.pair for named in self.tensors)
        pair_numbers = {pair: number for number, pair in enumerate(pairs)}
        slots = [named.slot for named in self.tensors]
        table: dict[str, Any] = {
            "count": len(slots),
            "pairs": list(pairs),
            "names": [named.name for named in self.tensors],
            "pair": _column("H", [pair_numbers[named.pair] for named in self.tensors]),
            "dtype": bytes([NUMBERS[slot.dtype] for slot in slots]),
            "dims": bytes([len(slot.shape) for slot in slots]),
            "region": _column("I", [regions[id(slot.memory)] for slot in slots]),
            "offset": _column("Q", [slot.offset for slot in slots]),
            "shape": _column("Q", [size for slot in slots for size in slot.shape]),
            "strides": _column("Q", [stride for slot in slots for stride in slot.strides]),
            # Empty: all have the layout of their pair.
            "layout": _column("H", [0xFFFF if n.layout is None else n.layout for n in self.tensors])
            if self.layouts
            else b"",
            "globalShapes": [
                [at, [str(size) for size in named.global_shape]]
                for at, named in enumerate(self.tensors)
                if named.global_shape is not None
            ],
        }
        return table


def _column(code: str, values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)


@dataclass
class Transfer(Message):
    """Runs a round of a batch."""

    batch_id: str | int
    transfer_type: str
    instance: int | None = None
    version: int | None = None
    tell_version: bool = False

    @property
    def context(self) -> object:
        return self.batch_id

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"batch": self.batch_id, "direction": self.transfer_type}
        if self.tell_version:
            body["tellVersion"] = True
        if self.instance is not None:
            body["instance"] = self.instance
        if self.version is not None:
            body["version"] = self.version
        return body


@dataclass
class QueryStatus(Message):
    """Asks whether a round is ready, and how far it is."""

    batch_id: str | int
    instance: int | None = None
    tell_version: bool = False

    @property
    def context(self) -> object:
        return self.batch_id

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"batch": self.batch_id}
        if self.tell_version:
            body["tellVersion"] = True
        if self.instance is not None:
            body["instance"] = self.instance
        return body


@dataclass
class CleanupBatch(Message):
    """Frees a batch."""

    batch_id: str | int
    instance: int = 0

    @property
    def context(self) -> object:
        return self.batch_id

    @property
    def body(self) -> dict[str, Any]:
        return {"batch": self.batch_id, "instance": self.instance}
