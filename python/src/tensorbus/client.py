"""The client: what a process hands its tensors to, and asks for transfers."""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import time
import weakref
from collections.abc import Sequence
from typing import Any

from . import _places, _wire
from ._agents import start_command
from ._batch import BatchHandler, Registration, quiesce
from ._cuda import CudaAllocation, EventPair, wait_free
from ._layouts import layout_message, own_rank
from ._link import Call, Link
from ._memory import leave_arena
from ._semaphore import Semaphore
from ._tensors import Slot, assign_copies
from .errors import QueueFullError, TensorBusError, add_note, make_error
from .messages import (
    InitPair,
    Message,
    NamedSlot,
    QueryStatus,
    RegisterTensors,
    Transfer,
    generate_semaphore_name,
)

__all__ = [
    "BatchHandler",
    "QueueFullError",
    "TensorBusClient",
    "generate_semaphore_name",
    "logger",
]

logger = logging.getLogger("tensorbus")


def __getattr__(name: str) -> Any:
    # The original has them here too; they are made of the client.
    if name in ("bootstrap_client", "BootstrapInfo"):
        from . import _bootstrap

        return getattr(_bootstrap, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Longer than a transport may take to make a cancelled round's memory quiet.
_ROUND_GRACE = 15.0
_LOOK_FOR_AGENT = 0.05


class TensorBusClient:
    """Talks to the agent of one rank. Safe to use from many threads.

    Args:
        agent_rank: The rank of the agent, in the world of agents.
        lmdb_command_queue_path: The folder of its command queue, in which its socket stands; default
            ``TENSOR_BUS_COMMAND_QUEUE_PATH``.
        agent_state_lmdb_path: The folder of its state; default ``TENSOR_BUS_STATE_PATH``. It is only told on.
        connection_timeout: Seconds in which an agent must be found.

    Raises:
        ValueError: There is no path.
        ConnectionError: No agent answers there until the timeout, or it is that of another rank.
    """

    def __init__(
        self,
        agent_rank: int,
        lmdb_command_queue_path: str | None = None,
        agent_state_lmdb_path: str | None = None,
        connection_timeout: float = 30.0,
    ) -> None:
        if not isinstance(agent_rank, int) or isinstance(agent_rank, bool) or agent_rank < 0:
            raise ValueError(f"agent_rank must be a rank of the world of agents, not {agent_rank!r}")
        queue = lmdb_command_queue_path or os.environ.get("TENSOR_BUS_COMMAND_QUEUE_PATH")
        state = agent_state_lmdb_path or os.environ.get("TENSOR_BUS_STATE_PATH")
        if not queue and not os.environ.get("TENSOR_BUS_CLIENT_SOCKET"):
            message = "lmdb_command_queue_path must be given, or TENSOR_BUS_COMMAND_QUEUE_PATH set"
            error = make_error("TB_ENVIRONMENT", message, {"missing": ["TENSOR_BUS_COMMAND_QUEUE_PATH"]})
            add_note(
                error, "bootstrap_client finds the folders by itself, and default_paths(rank) says which they are."
            )
            raise error
        self._agent_rank = agent_rank
        self._queue_path = queue or ""
        self._state_path = state
        self._pid = os.getpid()
        self._closed = False
        self._registrations: weakref.WeakSet[Registration] = weakref.WeakSet()
        self._matching: dict[str, tuple[Link, Call]] = {}
        self._link_now: Link | None = None
        self.await_agent(connection_timeout)

    # ---- the tie to the agent ----------------------------------------------------------------------------

    @property
    def agent_rank(self) -> int:
        """The rank of its agent."""
        return self._agent_rank

    @property
    def agent_state_lmdb_path(self) -> str | None:
        """The folder of the agent's state, as it was given."""
        return self._state_path

    @property
    def agent(self) -> dict[str, Any]:
        """What the agent said of itself: its rank, generation, process, and the version of its package."""
        return {name: self._link().welcome[name] for name in ("rank", "generation", "pid", "agent", "protocol")}

    @property
    def sides(self) -> dict[str, list[int]]:
        """The ranks of each side, as the agents were told (``tensorbus agents --side``); empty if they were not."""
        known = self._link().welcome.get("sides") or {}
        return {str(name): [int(rank) for rank in ranks] for name, ranks in known.items()}

    def __getattr__(self, name: str) -> Any:
        instead = {
            "command_queue": "calls go over the agent's socket; Semaphore.done() tells how they stand",
            "state_db": "BatchHandler.plans and Semaphore.result() give what it holds",
            "state_env": "BatchHandler.plans and Semaphore.result() give what it holds",
        }
        if name in instead:
            raise AttributeError(f"{name} is an LMDB object of the original client, and is not here: {instead[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def await_agent(self, timeout: float = 30.0) -> None:
        """Waits until the agent answers, and ties to it. Calls tie by themselves to an agent that lives.

        Raises:
            ConnectionError: There is none until the timeout.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._tie(deadline - time.monotonic())
                return
            except TensorBusError as error:
                away = error.code in ("TB_AGENT_LOST", "TB_AGENT_UNRESPONSIVE", "TB_CLOSED") and not self._closed
                if not away or time.monotonic() + _LOOK_FOR_AGENT >= deadline:
                    raise
            time.sleep(_LOOK_FOR_AGENT)

    def _tie(self, timeout: float) -> Link:
        self._require_here()
        link = self._link_now
        if link is not None and link.is_open:
            return link
        path = _places.socket_path(self._queue_path)
        try:
            connected = _wire.connect(path, timeout)
        except OSError as cause:
            # That there is no such socket is what the message says.
            raise self._no_agent(path, cause) from None
        link = Link(path, connected, max(timeout, 0.5))
        if link.rank != self._agent_rank:
            link.close()
            message = f"the agent at {path} is that of rank {link.rank}, not {self._agent_rank}"
            raise make_error("TB_AGENT_RANK", message, {"wanted": self._agent_rank, "found": link.rank})
        registrations = self._registrations
        link.on_batch_end = lambda batch, error: _end_batch(registrations, batch, error)
        self._link_now = link
        return link

    def _no_agent(self, path: str, cause: OSError) -> TensorBusError:
        if isinstance(cause, PermissionError):
            return make_error("TB_FOREIGN", f"the socket {path} belongs to another user", {"path": path})
        ranks = _places.ranks_here()
        here = _places.rank_list(ranks) or "none"
        message = f"no agent of rank {self._agent_rank}{how_found(self._agent_rank)} at {path}; agents here: {here}"
        details = {"path": path, "rank": self._agent_rank, "here": ranks, "cause": str(cause)}
        error = make_error("TB_AGENT_LOST", message, details)
        if ranks and os.environ.get("AGENT_RANK_OFFSET"):
            add_note(error, f"AGENT_RANK_OFFSET is {os.environ['AGENT_RANK_OFFSET']}: do the agents begin there?")
        for found, advice in [] if ranks else _places.agents_elsewhere():
            add_note(error, f"There are other agents, {found}: {advice}.")
        add_note(error, f"Start agents: {start_command()}")
        return error

    def _require_here(self) -> None:
        if self._closed:
            raise make_error("TB_CLOSED", f"the client of rank {self._agent_rank} was closed")
        if os.getpid() != self._pid:
            message = f"the client of rank {self._agent_rank} belongs to process {self._pid}: make one after the fork"
            raise make_error("TB_CLOSED", message, {"pid": self._pid})

    def _link(self) -> Link:
        link = self._link_now
        if link is not None and link.is_open and not self._closed:
            return link
        return self._tie(5.0)

    def close(self) -> None:
        """Frees what this client made: its batches, its memory's registrations, its commands; never the agent's own.

        Rounds under way are cancelled; where they use memory of a GPU, this waits until the agent has let go of it.
        """
        if self._closed:
            return
        self._closed = True
        registrations = list(self._registrations)
        try:
            if os.getpid() == self._pid:
                quiesce(registrations, _ROUND_GRACE)
        finally:
            link = self._link_now
            if link is not None:
                link.close()
            for registration in registrations:
                registration.end(make_error("TB_CLOSED", f"the client of rank {self._agent_rank} was closed"))

    def __enter__(self) -> TensorBusClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        link = getattr(self, "_link_now", None)
        if link is not None and os.getpid() == self._pid:
            # What has been answered by now is not under way.
            with contextlib.suppress(TensorBusError):
                link.look()
            link.close()

    # ---- commands ----------------------------------------------------------------------------------------

    def _run(
        self,
        message: Message,
        timeout: float | None,
        *,
        descriptors: Sequence[int] = (),
        wait: bool = True,
    ) -> tuple[Link, Call, Any]:
        """Sends a command and waits for its answer; whatever comes between takes it back."""
        link = self._link()
        call = link.prepare(
            type(message).__name__,
            message.body,
            timeout,
            name=message.semaphore_name,
            timestamp=message.timestamp,
            keep=self,
        )
        try:
            link.send(call, descriptors)
            return link, call, link.wait(call) if wait else None
        except BaseException:
            link.take_back(call)
            raise

    def init_pair(
        self,
        pair_name: str,
        local_name: str,
        remote_name: str,
        expected_world_size: int,
        device_mesh: Any = None,
        placements: Sequence[Any] | None = None,
        blocking: bool = True,
        timeout: float = 30.0,
        *,
        strided_shard: str | None = None,
        tensor_layouts: bool = False,
    ) -> None:
        """Registers this rank's side of a pair, and waits until both sides are complete and matched.

        Args:
            pair_name: What both sides call the pair.
            local_name: This side.
            remote_name: The other side.
            expected_world_size: Ranks that this side has in all.
            device_mesh: With ``placements``: how this side's tensors lie. A torch ``DeviceMesh``, a ``Mesh``, or
                ``(shape, dim_names)``; its ranks are those of this job. Without both, rank i's whole tensor goes to
                rank i of the other side.
            placements: One for each dimension of the mesh: torch's, or text (``S(0)``, ``R``).
            blocking: False returns once the command is sent; what fails later is told by ``register_tensors``.
            timeout: Seconds.
            strided_shard: How strided shards read (``split`` or ``order``), if that makes a difference.
            tensor_layouts: This side's tensors name their own layouts when they are registered.

        Raises:
            ValueError: A mesh without this rank, ranks that do not agree, a side that is registered already.
            TimeoutError: The other ranks did not come.
        """
        for name in (pair_name, local_name, remote_name):
            if not isinstance(name, str) or not name:
                raise ValueError(f"a name must be text, not {name!r}")
        if not isinstance(expected_world_size, int) or expected_world_size < 1:
            raise ValueError(f"expected_world_size must be a count of ranks, not {expected_world_size!r}")
        if (device_mesh is None) != (placements is None):
            raise ValueError("device_mesh and placements are given both or not at all")
        layout: dict[str, Any] | str | None = "tensors" if tensor_layouts else None
        if device_mesh is not None and placements is not None:
            layout = layout_message(device_mesh, placements, self.rank_offset(), strided_shard)
            ranks = layout["mesh"]["ranks"]
            if len(ranks) > expected_world_size:
                message = f"a mesh of {len(ranks)} ranks, and side {local_name} has {expected_world_size} in all"
                raise make_error("TB_MESH", message, {"ranks": len(ranks), "worldSize": expected_world_size})
            if self._agent_rank not in ranks:
                raise make_error("TB_MESH", f"rank {self._agent_rank} is not in its own mesh {ranks}", {"ranks": ranks})
        command = InitPair(pair_name, local_name, remote_name, expected_world_size, layout)
        link, call, _ = self._run(command, timeout, wait=blocking)
        if blocking:
            self._matching.pop(pair_name, None)
        else:
            self._matching[pair_name] = (link, call)

    def rank_offset(self) -> int:
        """What is added to a rank of this job to get the rank of its agent."""
        rank = own_rank()
        return 0 if rank is None else self._agent_rank - rank

    def register_tensors(
        self,
        batch_id: str | int,
        tensors: Sequence[tuple[Any, str]],
        bucket_size: int | None = None,
        timeout: float = 30.0,
        *,
        commit: str | None = None,
    ) -> BatchHandler:
        """Hands tensors to the agent, each with its pair, and waits until all ranks of both sides have done so.

        Tensors match by their position within their pair. What is not in shared memory (``tensorbus.empty``,
        ``tensorbus.share``) has a copy there: see ``BatchHandler.copied_bytes``.

        Args:
            batch_id: Text or an integer, the same on both sides.
            tensors: Pairs of a tensor and the name of its pair.
            bucket_size: Bytes of a bucket on the wire; the same on both sides.
            timeout: Seconds.
            commit: When targets change: ``direct`` (as bytes arrive) or ``staged`` (on all ranks at once).
        """
        if not tensors:
            raise ValueError("a batch has at least one tensor")
        counts: dict[str, int] = {}
        allocations: dict[tuple[int, int], CudaAllocation] = {}
        named = []
        for at, (tensor, pair) in enumerate(tensors):
            position = counts.get(pair, 0)
            counts[pair] = position + 1
            label = f"{at} of batch {batch_id}"
            slot = Slot(label, lambda tensor=tensor: tensor, allocations=allocations)  # type: ignore[misc]
            named.append(NamedSlot(slot, pair, str(position)))
        message = RegisterTensors(batch_id, named, bucket_size, commit)
        return self._register(message, timeout)

    def _register(self, message: RegisterTensors, timeout: float) -> BatchHandler:
        deadline = time.monotonic() + timeout
        slots = [named.slot for named in message.tensors]
        pairs = list(dict.fromkeys(named.pair for named in message.tensors))
        self._await_pairs(pairs, deadline)
        assign_copies(slots)
        ordinals = {slot.memory.ordinal for slot in slots if isinstance(slot.memory, CudaAllocation)}
        message.events = {ordinal: EventPair(ordinal) for ordinal in sorted(ordinals)}
        _, descriptors, _ = message.regions()
        try:
            link, _, answer = self._run(message, deadline - time.monotonic(), descriptors=descriptors)
        except TensorBusError as error:
            # Tensors that the caller makes instead must not lie in the memory that was refused.
            if error.code == "TB_QUARANTINED":
                leave_arena()
            raise
        registration = Registration(link, message.batch_id, pairs, slots, answer, list(message.events.values()))
        self._registrations.add(registration)
        return BatchHandler(self, message.batch_id, pairs, registration)

    def _await_pairs(self, pairs: Sequence[str], deadline: float) -> None:
        for pair in pairs:
            matching = self._matching.pop(pair, None)
            if matching is not None:
                link, call = matching
                link.wait(call, max(0.0, deadline - time.monotonic()))

    def transfer(
        self,
        batch_id: str | int,
        transfer_type: str,
        blocking: bool = False,
        timeout: float = 30.0,
        *,
        version: int | None = None,
    ) -> Semaphore:
        """Runs one round of all pairs of a batch.

        Args:
            batch_id: Of the batch that this client has registered.
            transfer_type: ``"send"`` or ``"recv"``.
            blocking: Wait for the end of the round.
            timeout: Seconds; then the round is cancelled, on all ranks.
            version: What is sent, or at least wanted: a growing integer.

        Returns:
            A semaphore that has its count when the round has ended; a receive is to be waited for by it, since that is
            when tensors that are copied are brought up to date.
        """
        _require_direction(transfer_type)
        return self._transfer(self._find(batch_id), transfer_type, blocking, timeout, version)

    def _find(self, batch_id: str | int) -> Registration:
        for registration in list(self._registrations):
            if registration.batch_id == batch_id and registration.error is None:
                return registration
        message = f"batch {batch_id} is not registered by this client"
        raise make_error("TB_BATCH_UNKNOWN", message, {"batch": batch_id, "rank": self._agent_rank})

    def _transfer(
        self,
        registration: Registration,
        transfer_type: str,
        blocking: bool,
        timeout: float | None,
        version: int | None = None,
        tell_version: bool = False,
        around: contextlib.AbstractContextManager[object] | None = None,
    ) -> Semaphore:
        """A round; ``around`` is entered while a blocking call waits for its end."""
        _require_direction(transfer_type)
        version = _require_version(version)
        self._require_here()
        registration.require_open()
        deadline = None if timeout is None else time.monotonic() + timeout
        registration.await_interrupted(transfer_type, deadline)
        if transfer_type == "send":
            registration.write()
        else:
            registration.check()
        registration.record_ready()
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        message = Transfer(registration.batch_id, transfer_type, registration.instance, version, tell_version)
        link = registration.link
        slots, events = registration.slots, registration.events
        call = link.prepare(
            "Transfer",
            message.body,
            left,
            name=message.semaphore_name,
            timestamp=message.timestamp,
            grace=_ROUND_GRACE,
            keep=(self, slots),
            memory=(slots, events) if events else None,
        )

        def finish(value: dict[str, Any]) -> dict[str, Any]:
            wait_free(events)
            if transfer_type == "recv":
                for slot in slots:
                    slot.read_back()
            return value

        def fail() -> None:
            # The round has failed for a reason of its own.
            with contextlib.suppress(TensorBusError):
                wait_free(events)

        registration.begin(transfer_type, call)
        semaphore = Semaphore(link, call, finish, fail)
        try:
            link.send(call)
            if blocking:
                with around or contextlib.nullcontext():
                    semaphore.result()
        except BaseException as error:
            semaphore._cancel(error)
            raise
        return semaphore

    def query_transfer_signal(self, batch_id: str | int, blocking: bool = True, timeout: float = 30.0) -> bool:
        """True once every rank of the sending side has its round ready, until the receiving side has taken it."""
        return bool(self._query(self._find(batch_id), timeout)["ready"])

    def _query(self, registration: Registration, timeout: float, tell_version: bool = False) -> dict[str, Any]:
        registration.require_open()
        message = QueryStatus(registration.batch_id, registration.instance, tell_version)
        link = registration.link
        answer: dict[str, Any] = link.wait(
            link.submit("QueryStatus", message.body, timeout, name=message.semaphore_name)
        )
        return answer


def how_found(agent_rank: int) -> str:
    """The variables that an agent's rank follows from, for messages."""
    if os.environ.get("AGENT_RANK") == str(agent_rank):
        return f" (AGENT_RANK {agent_rank})"
    offset = os.environ.get("AGENT_RANK_OFFSET", "")
    added = int(offset) if offset.isdigit() else 0
    rank = agent_rank - added
    if rank < 0 or (not offset and own_rank() is None) or own_rank() not in (None, rank):
        return ""
    return f" (RANK {rank} + AGENT_RANK_OFFSET {added if offset else '0, which is not set'})"


def _require_direction(transfer_type: str) -> None:
    if transfer_type not in ("send", "recv"):
        raise ValueError(f'a transfer is "send" or "recv", not {transfer_type!r}')


def _require_version(version: Any) -> int | None:
    if version is None:
        return None
    try:
        number = operator.index(version)
    except TypeError:
        raise TypeError(f"a version is a whole number, such as the training step, not {version!r}") from None
    if not 0 <= number < 2**64:
        raise ValueError(f"a version is a whole number from 0 to 2^64 - 1, not {number}")
    return number


def _end_batch(registrations: weakref.WeakSet[Registration], batch: Any, error: TensorBusError) -> None:
    for registration in list(registrations):
        if registration.batch_id == batch:
            registration.end(error)
