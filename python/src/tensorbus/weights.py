"""A model's weights, between a side that trains it and one that uses it, in three lines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import operator
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from . import _places, _wire
from ._agents import start_command
from ._batch import BatchHandler
from ._bootstrap import resolve
from ._dtypes import dtype_name
from ._layouts import Mesh, own_rank, own_world_size
from ._link import Link
from ._models import Census, LayoutList, LayoutOf, model_tensors, named_slots
from ._progress import ProgressLine, is_shown
from ._semaphore import Semaphore, await_release
from .client import TensorBusClient, how_found
from .errors import TensorBusError, add_note, make_error
from .messages import RegisterTensors

__all__ = ["Weights"]

_logger = logging.getLogger("tensorbus")
# Seconds after which it is said what is waited for.
_SLOW = 10.0
_DIRECTIONS = {"source": "send", "target": "recv"}
_SIDES = {"source": ("trainer", "engine"), "target": ("engine", "trainer")}


class Weights:
    """A model's tensors on this rank, registered with its agent under the names that both sides know.

    Every rank of both sides makes one, and calls ``send`` or ``recv`` for each round. Nothing is agreed beforehand but
    the name and the names of the sides.

    Args:
        name: What both sides call the model.
        module_or_tensors: A torch module, or a mapping of names to tensors. A DTensor lies as it says; any other tensor
            as ``layout`` says, else every rank holds the whole of it.
        role: ``"source"`` or ``"target"``.
        me: The name of this side; default ``"trainer"`` for a source, ``"engine"`` for a target.
        peer: The name of the other side.
        client: The client to use; default: one of its own, found by ``AGENT_RANK``, by RANK and ``AGENT_RANK_OFFSET``,
            or by RANK and the sides that the agents know (``tensorbus agents --side``).
        rank: This process's rank in its job; default: of ``torch.distributed``, else ``RANK``.
        world_size: The size of the job; default: of ``torch.distributed``, else ``WORLD_SIZE``.
        layout: ``layout(name, tensor)`` gives mesh and placements of a plain tensor: of which whole this is a part; and
            as a third the whole shape, if it does not follow from what the ranks have. A mesh is a ``DeviceMesh``, a
            ``Mesh``, or ``(shape, dim_names)`` without a process group.
        rename: ``rename(name)`` gives the other side's name, or None to leave the tensor out.
        dtype: What floating-point tensors travel as, if the copy is to be in that type already.
        match: ``"exact"`` refuses a difference of names, ``"target"`` leaves out what only the source has, ``"common"``
            what only one side has.
        buffers: ``"persistent"``, ``"all"`` or ``"none"``.
        commit: When targets change: ``"direct"`` (as bytes arrive) or ``"staged"`` (on all ranks at once).
        bucket_size: Bytes of a bucket on the wire; the same on both sides.
        timeout: Seconds for finding the agent, the other ranks and the other side.

    Attributes:
        statistics: What the last round moved on this rank, and how long it took.
    """

    def __init__(
        self,
        name: str,
        module_or_tensors: Any,
        *,
        role: str,
        me: str | None = None,
        peer: str | None = None,
        client: TensorBusClient | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        layout: LayoutOf | None = None,
        rename: Callable[[str], str | None] | None = None,
        dtype: Any = None,
        match: str | None = None,
        buffers: str = "persistent",
        commit: str | None = None,
        bucket_size: int | None = None,
        timeout: float = 300.0,
    ) -> None:
        if role not in _DIRECTIONS:
            raise ValueError(f'role is "source" or "target", not {role!r}')
        if match not in (None, "exact", "target", "common"):
            raise ValueError(f'match is "exact", "target" or "common", not {match!r}')
        if commit not in (None, "direct", "staged"):
            raise ValueError(f'commit is "direct" or "staged", not {commit!r}')
        if not isinstance(name, str) or not name:
            raise ValueError(f"a name must be text, not {name!r}")
        self.name = name
        self.role = role
        self.me = me or _SIDES[role][0]
        self.peer = peer or _SIDES[role][1]
        self.statistics: dict[str, Any] = {}
        self._rank, self._world_size = _own_place(rank, world_size)
        self._model = module_or_tensors
        self._layout, self._rename, self._match, self._buffers = layout, rename, match, buffers
        self._dtype = None if dtype is None else dtype_name(dtype)
        self._commit, self._bucket_size = commit, _bytes_of(bucket_size)
        deadline = time.monotonic() + timeout
        self._owns_client = client is None
        self.client = client or find_client(self.me, self._rank, timeout)
        self._handler: BatchHandler | None = None
        try:
            if self._owns_client:
                require_side(self.client, self.me, self._rank)
            # What is wrong with the model is said before anybody is waited for.
            message = self._describe()
            with _say_if_slow(f"weights {name}: waiting for all ranks of {self.me}, and for {self.peer} to come"):
                self._pair(deadline)
            with _say_if_slow(f"weights {name}: waiting for all ranks of both sides to register their tensors"):
                self._handler = self._register(message, deadline)
        except BaseException:
            self.close()
            raise

    # ---- making it ---------------------------------------------------------------------------------------

    def _pair(self, deadline: float) -> None:
        try:
            self.client.init_pair(
                self.name,
                self.me,
                self.peer,
                self._world_size,
                timeout=max(0.0, deadline - time.monotonic()),
                tensor_layouts=True,
            )
        except TensorBusError as error:
            if error.code == "TB_EXISTS":
                offset = os.environ.get("AGENT_RANK_OFFSET")
                wrong = f"right ({offset})" if offset else "missing"
                add_note(
                    error,
                    f"Agent {self.client.agent_rank} already serves side {self.me}: is AGENT_RANK_OFFSET {wrong}, "
                    "or was a Weights of this name not closed?",
                )
            if error.code == "TB_TIMEOUT":
                add_note(error, f"Weights({self.name!r}) was waiting for all ranks of {self.me} and of {self.peer}.")
            raise

    def _describe(self) -> RegisterTensors:
        tensors = model_tensors(self._model, self._buffers, tied_once=self.role == "target")
        self._census = Census(self._model)
        whole = (Mesh((self._world_size,)), ["R"])
        layouts = LayoutList(
            self.client.agent_rank - self._rank,
            whole,
            self._layout,
            (self.me, self._world_size),
            rank=self._rank,
            # With "common", the source may not have the tensor, which is then left out: the agents know.
            refuses_partial=self.role == "target" and self._match != "common",
        )
        slots = named_slots(tensors, self.name, layouts, self._rename, self._dtype)
        for slot in (named.slot for named in slots if self.role == "target" and named.slot.unfit):
            message = f"{slot.label} {slot.unfit}: nothing can be received into it"
            raise make_error("TB_ALIAS", message, {"tensor": slot.label})
        return RegisterTensors(self.name, slots, self._bucket_size, self._commit, self._match, tuple(layouts.messages))

    def _register(self, message: RegisterTensors, deadline: float) -> BatchHandler:
        return self.client._register(message, max(0.0, deadline - time.monotonic()))

    def refresh(self, timeout: float = 300.0) -> None:
        """Registers the model anew, on all ranks of both sides: parameters are others, or the batch has ended."""
        if self._handler is not None:
            self._handler.close(timeout=timeout)
            self._handler = None
        self._handler = self._register(self._describe(), time.monotonic() + timeout)

    def close(self) -> None:
        """Frees what it has made in the agent. A second call does nothing.

        Call it when this rank's own last round is over: other ranks that are still in that round go on to its end.
        After that, the batch has ended for all ranks of both sides.
        """
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.close(blocking=False)
        if self._owns_client:
            self.client.close()

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- rounds ------------------------------------------------------------------------------------------

    @property
    def _open(self) -> BatchHandler:
        if self._handler is None:
            raise make_error("TB_CLOSED", f"the weights {self.name} were closed", {"name": self.name})
        return self._handler

    @property
    def plan(self) -> str:
        """The digest of the plan that all ranks hold."""
        plan = self._open.plans[_DIRECTIONS[self.role]]
        if "refused" in plan:
            raise make_error(plan["refused"]["code"], plan["refused"]["message"])
        return str(plan["digest"])

    @property
    def prediction(self) -> float | None:
        """Seconds that the last round was expected to take, if that was known."""
        return self.statistics.get("predictedSeconds")

    @property
    def copied_bytes(self) -> int:
        """Bytes that each round copies between tensors and shared memory on this rank."""
        return self._open.copied_bytes

    def send(self, version: int | None = None, *, wait: bool = True, timeout: float = 300.0) -> Semaphore:
        """Sends the weights as they are now, on every rank of a source.

        Args:
            version: What they are: a growing integer, which ``recv`` returns.
            wait: For the targets to have taken them. Without it, the parameters may be changed once this returns if
                they are copied, and else once the semaphore has its count.
            timeout: Seconds.
        """
        return self._round("source", version, wait, timeout)

    def recv(self, *, timeout: float | None = None) -> int | None:
        """Waits for the next weights, on every rank of a target: their version, else the number of the round.

        None: they are here, but the store did not say in time which version they have.
        """
        semaphore = self._round("target", None, True, timeout)
        return _version_of(semaphore.result())

    def _round(self, role: str, version: int | None, wait: bool, timeout: float | None) -> Semaphore:
        if role != self.role:
            raise ValueError(f"these weights are a {self.role}: they can only {_DIRECTIONS[self.role]}")
        handler = self._open
        self._census.check()
        semaphore = self.client._transfer(
            handler._registration,
            _DIRECTIONS[role],
            wait,
            timeout,
            version,
            tell_version=role == "target",
            around=self._progress(role) if wait else None,
        )
        if wait:
            self.statistics = semaphore.result()
        return semaphore

    def _progress(self, role: str) -> contextlib.AbstractContextManager[object]:
        """A line on the terminal of the job's rank 0, once a round takes long."""
        if self._rank != 0 or not is_shown():
            return contextlib.nullcontext()
        registration = self._open._registration
        return ProgressLine(
            f"{self.name}: {'sending' if role == 'source' else 'receiving'}",
            lambda: self.client._query(registration, 2.0).get("progress"),
        )

    async def asend(self, version: int | None = None, *, timeout: float = 300.0) -> None:
        """As ``send``, for asyncio. A task that is cancelled takes the round back."""
        await self._await_round("source", version, timeout)

    async def arecv(self, *, timeout: float | None = None) -> int | None:
        """As ``recv``, for asyncio. A task that is cancelled takes the round back."""
        await self._await_round("target", None, timeout)
        return _version_of(self.statistics)

    async def _await_round(self, role: str, version: int | None, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        registration = self._open._registration
        interrupted = registration.interrupted_round(_DIRECTIONS[role])
        if interrupted is not None:
            # The round says it itself if that takes too long.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(await_release(registration.link, interrupted), timeout)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        semaphore = self._round(role, version, False, left)
        try:
            self.statistics = await semaphore.wait()
        except BaseException as error:
            await semaphore._cancel_async(error)
            raise

    def pending(self, *, timeout: float = 30.0) -> int | None:
        """The version that ``recv`` would give without a long wait: all source ranks have sent it. None: there is none.

        If the source names no versions, it is the number of the round. The job's rank 0 asks and tells the others by
        ``torch.distributed``, so that no two ranks can disagree: all ranks call it. Without a process group each rank
        asks for itself.
        """
        distributed = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_initialized() or distributed.get_world_size() == 1:
            return self._ask_pending(timeout)
        # What rank 0 meets is told too: the others would wait for it.
        answer: list[Any] = [None]
        if distributed.get_rank() == 0:
            try:
                answer = [self._ask_pending(timeout)]
            except TensorBusError as error:
                answer = [error]
            except BaseException as error:
                # Exceptions of other libraries may not be picklable: the others are told the text.
                message = f"rank 0 could not ask for the pending version: {type(error).__name__}: {error}"
                distributed.broadcast_object_list([make_error("TB_CANCELLED", message, {"rank": 0})], src=0)
                raise
        distributed.broadcast_object_list(answer, src=0)
        if isinstance(answer[0], TensorBusError):
            raise answer[0]
        return None if answer[0] is None else int(answer[0])

    def _ask_pending(self, timeout: float) -> int | None:
        status = self.client._query(self._open._registration, timeout, tell_version=True)
        pending = status.get("pending")
        return None if pending is None else int(pending.get("version", pending["round"]))


@contextlib.contextmanager
def _say_if_slow(what: str) -> Iterator[None]:
    """Logs what is waited for, once that takes long: somebody may have forgotten to start it."""
    timer = threading.Timer(_SLOW, _logger.warning, [what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _version_of(result: Mapping[str, Any]) -> int | None:
    # The number of the round would pass for a version.
    return None if result.get("versionUnknown") else int(result.get("version", result["round"]))


def _bytes_of(bucket_size: Any) -> int | None:
    if bucket_size is None:
        return None
    with contextlib.suppress(TypeError):
        # Integers of any class, of numpy too; True is one for Python.
        if not isinstance(bucket_size, bool) and (size := operator.index(bucket_size)) >= 1:
            return size
    raise ValueError(f"bucket_size is a number of bytes, not {bucket_size!r}")


def _own_place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    found_rank = own_rank() if rank is None else rank
    found_size = own_world_size() if world_size is None else world_size
    if found_rank is None or found_size is None:
        missing = [name for name, found in (("rank", found_rank), ("world_size", found_size)) if found is None]
        are = "are" if len(missing) > 1 else "is"
        message = f"{' and '.join(missing)} {are} not known: no torch.distributed runs, and the environment has no "
        raise make_error(
            "TB_ENVIRONMENT", message + " and no ".join(name.upper() for name in missing), {"missing": missing}
        )
    if not 0 <= found_rank < found_size:
        message = f"rank {found_rank} is not in a job of {found_size}"
        raise make_error("TB_ENVIRONMENT", message, {"rank": found_rank, "worldSize": found_size})
    return found_rank, found_size


def find_client(side: str, rank: int, timeout: float) -> TensorBusClient:
    """A client of this rank's agent: as ``bootstrap_client``, or by the side's name if agents know their sides."""
    deadline = time.monotonic() + timeout
    named = any(os.environ.get(name) for name in ("AGENT_RANK", "AGENT_RANK_OFFSET", "TENSOR_BUS_COMMAND_QUEUE_PATH"))
    agent_rank = None if named else _agent_of(side, rank, deadline)
    left = max(0.0, deadline - time.monotonic())
    if agent_rank is None:
        info = resolve(rank=rank)
        return TensorBusClient(info.agent_rank, info.command_queue_path, info.agent_state_path, left)
    paths = _places.default_paths(agent_rank)
    return TensorBusClient(agent_rank, paths.command_queue_path, paths.agent_state_path, left)


def require_side(client: TensorBusClient, side: str, rank: int) -> None:
    """Checks that an agent which was found by numbers is one of this side, if the agents know their sides."""
    sides = client.sides
    members = sides.get(side)
    if members is None or client.agent_rank in members:
        return
    others = [name for name, ranks in sides.items() if client.agent_rank in ranks]
    whose = f"of side {others[0]}" if others else "of no side"
    message = (
        f"agent {client.agent_rank}{how_found(client.agent_rank)} is {whose}; "
        f"the agents of {side} are {_places.rank_list(sorted(members))}"
    )
    details = {"side": side, "rank": rank, "agentRank": client.agent_rank, "members": list(members)}
    error = make_error("TB_AGENT_RANK", message, details)
    add_note(error, "Leave AGENT_RANK and AGENT_RANK_OFFSET out: the agents know their sides.")
    raise error


def _agent_of(side: str, rank: int, deadline: float) -> int | None:
    """The agent of a rank of a side, as any agent of this host knows it. Waits until there is an agent."""
    folder = _places.namespace_folder()
    with _say_if_slow(f"no agent answers in {folder} yet; to start some: {start_command()}"):
        return _await_agent_of(side, rank, deadline)


def _await_agent_of(side: str, rank: int, deadline: float) -> int | None:
    while True:
        for here in _places.ranks_here():
            sides = _sides_of(here)
            if sides is None:
                continue
            if not sides:
                return None
            return _member(sides, side, rank)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.1)


def _sides_of(agent_rank: int) -> Mapping[str, Sequence[int]] | None:
    path = os.path.join(_places.default_paths(agent_rank).command_queue_path, "client.sock")
    try:
        link = Link(path, _wire.connect(path, 2.0), 2.0)
    except (OSError, TensorBusError):
        return None
    link.close()
    sides: Mapping[str, Sequence[int]] = link.welcome.get("sides") or {}
    return sides


def _member(sides: Mapping[str, Sequence[int]], side: str, rank: int) -> int:
    members = sides.get(side)
    if members is None:
        known = ", ".join(sorted(sides))
        raise make_error(
            "TB_PAIR_MISMATCH", f"the agents here know no side {side}: they were told of {known}", {"side": side}
        )
    if rank >= len(members):
        message = f"side {side} has {len(members)} agents, and this is rank {rank} of it"
        raise make_error("TB_AGENT_RANK", message, {"side": side, "ranks": list(members), "rank": rank})
    return int(members[rank])
