"""A client's tie to one agent, from the connection to its end.

Whoever waits for an answer reads the socket, for everybody: a thread of its own for reading would wait for Python's
lock as long as other threads are busy. An interrupt (Ctrl-C) may come between any two operations, so nothing is taken
out of the socket, or put into it, and no lock is taken, but by one call into C that also notes it: what comes in is
appended by ``extend(map(recv, …))``, and stays until every frame of it has been handed out, which can be done twice
without harm; and a command is taken back wherever the interrupt has left it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from . import _wire
from ._version import __version__
from .errors import TensorBusError, make_error

# A heart that has not beaten for this long has stopped: the agent's beats every 100 ms.
UNRESPONSIVE = 2.0
# Seconds beyond a deadline in which the agent's own answer is waited for, as long as its heart beats: it knows whether
# memory is quiet, and a clock does not.
GRACE = 2.5
_LOOK = 0.25
# As often is a command looked at that is over, and that the agent has not let go of.
RELEASE_LOOK = 0.05
_READ_BYTES = 1 << 18
_CANCEL_TIMEOUT = 5.0

# Memory of GPUs that an agent may still touch, and tells nobody when it does no more: it stays for ever.
_never_quiet: list[object] = []


class Call:
    """A command under way."""

    __slots__ = (
        "_listeners",
        "deadline",
        "done",
        "error",
        "frame",
        "grace",
        "id",
        "is_released",
        "is_taken_back",
        "keep",
        "memory",
        "name",
        "outcome",
        "timeout",
    )

    def __init__(
        self,
        number: int,
        frame: dict[str, Any],
        name: str,
        timeout: float | None,
        grace: float,
        keep: object,
        memory: object,
    ) -> None:
        self.id = number
        self.frame = frame
        self.name = name
        self.timeout = timeout
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.grace = grace
        # What must not be collected before the agent has let go of it.
        self.keep = keep
        # What of that lies on a GPU: its allocator would give it to others while the agent touches it.
        self.memory = memory
        self.outcome: Any = None
        self.error: TensorBusError | None = None
        self.done = False
        self.is_taken_back = False
        self.is_released = False
        self._listeners: list[Callable[[Call], None]] = []

    def settle(self, outcome: Any, error: TensorBusError | None) -> None:
        if self.done:
            return
        self.outcome, self.error = outcome, error
        self.done = True
        for listener in self._listeners:
            listener(self)

    def release(self, is_quiet: bool) -> None:
        """The agent has let go of what the command was about, or says no more whether it has."""
        if not is_quiet and self.memory is not None:
            _never_quiet.append(self.memory)
        self.keep = self.memory = None
        self.is_released = True

    def on_done(self, listener: Callable[[Call], None]) -> None:
        """Calls ``listener`` once it is done; at once if it is."""
        self._listeners.append(listener)
        if self.done:
            listener(self)

    def forget(self, listener: Callable[[Call], None]) -> None:
        """Nobody is there any more who would be told."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.outcome


_links: weakref.WeakSet[Link] = weakref.WeakSet()


class Link:
    """The connection to an agent. Safe to use from many threads."""

    def __init__(self, path: str, connected: socket.socket, timeout: float) -> None:
        self.path = path
        self.welcome: dict[str, Any] = {}
        self.is_draining = False
        self.on_batch_end: Callable[[Any, TensorBusError], None] = lambda batch, error: None
        self.on_lost: Callable[[TensorBusError], None] = lambda error: None
        self._pid = os.getpid()
        self._socket = connected
        self._descriptors: socket.socket | None = None
        self._heart = -1
        self._beat = (0, 0.0)
        self._error: TensorBusError | None = None
        self._ids = itertools.count(1)
        self._hand_overs = itertools.count(1)
        self._pending: dict[int, Call] = {}
        self._chunks: list[bytes] = []
        self._outbox: deque[tuple[bytes, list[int], Call | None]] = deque()
        self._make_locks()
        _links.add(self)
        try:
            self._greet(time.monotonic() + timeout)
        except BaseException:
            self.close()
            raise

    def _make_locks(self) -> None:
        self._sending = threading.Lock()
        self._reading = threading.Lock()
        # Entered by itself: what a Condition does on entering is Python, and an interrupt would leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._reader: int | None = None

    # ---- the life of a link ------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._error is None

    @property
    def error(self) -> TensorBusError | None:
        """Why it is not open."""
        return self._error

    def _greet(self, deadline: float) -> None:
        client = f"python {sys.version.split()[0]}, tensorbus {__version__}"
        hello = {"type": "hello", "protocol": _wire.PROTOCOL, "client": client, "pid": os.getpid()}
        self._outbox.append((_wire.encode(hello), [], None))
        self._flush(deadline)
        while not self.welcome:
            self._require_open()
            if time.monotonic() >= deadline:
                raise make_error(
                    "TB_AGENT_UNRESPONSIVE", f"the agent at {self.path} does not answer", {"path": self.path}
                )
            self._await_readable(min(_LOOK, deadline - time.monotonic()))
            self._read()
        descriptors = _wire.connect(_wire.descriptors_path(self.path), deadline - time.monotonic())
        self._descriptors = descriptors
        descriptors.send(self.welcome["secret"])
        self.wait(self.submit("Lend", None, max(0.1, deadline - time.monotonic())))
        heart = _wire.receive_descriptor(descriptors)
        if heart is None:
            raise make_error("TB_AGENT_LOST", f"the agent at {self.path} has ended", {"path": self.path})
        self._heart = heart
        self._beat = (_wire.read_word(heart), time.monotonic())

    def close(self, error: TensorBusError | None = None) -> None:
        """Ends the tie: the agent frees what this client made. A second call does nothing."""
        if os.getpid() != self._pid:
            return
        self._end(error or make_error("TB_CLOSED", f"the client of rank {self.rank} was closed", {"rank": self.rank}))

    @property
    def rank(self) -> int | None:
        return self.welcome.get("rank")

    def _end(self, error: TensorBusError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._close_descriptors()
        # What was not sent yet ends too. It stays where it is: whoever sends may be looking at it.
        for call in [*self._pending.values(), *(sending for _, _, sending in list(self._outbox))]:
            if call is not None:
                self._settle_ended(call)
        self._pending.clear()
        self._notify()
        if error.code != "TB_CLOSED":
            self.on_lost(error)

    def _close_descriptors(self) -> None:
        heart, self._heart = self._heart, -1
        if heart >= 0:
            os.close(heart)
        for each in (self._socket, self._descriptors):
            if each is not None:
                each.close()

    def abandon_after_fork(self) -> None:
        """The connection belongs to the parent: the child closes its copies without a word."""
        self._make_locks()
        self._pid = os.getpid()
        self._pending.clear()
        message = (
            f"the client of rank {self.rank} belongs to process {os.getppid()}, which forked: make one in this process"
        )
        self._error = self._error or make_error("TB_CLOSED", message)
        self._close_descriptors()

    def _lost(self, cause: str) -> None:
        rank, pid = self.rank, self.welcome.get("pid")
        message = (
            f"the agent of rank {rank} (process {pid}) ended: {cause}"
            if self.welcome
            else f"the agent at {self.path} ended"
        )
        self._end(make_error("TB_AGENT_LOST", message, {"rank": rank, "pid": pid, "path": self.path}))

    def _settle_ended(self, call: Call) -> None:
        """Ends a call with its link: also one that came to the link at its end, and was not known to it."""
        if self._error is not None:
            call.settle(None, self._error)
            call.release(self._error.code == "TB_AGENT_LOST")

    def _require_open(self) -> None:
        if self._error is not None:
            raise self._error

    # ---- commands ----------------------------------------------------------------------------------------

    def submit(
        self,
        kind: str,
        body: dict[str, Any] | None,
        timeout: float | None,
        *,
        name: str | None = None,
        timestamp: float | None = None,
        descriptors: Sequence[int] = (),
        grace: float = GRACE,
        keep: object = None,
        memory: object = None,
    ) -> Call:
        """Sends a command. ``timeout`` in seconds bounds the sending too; ``None`` has no deadline."""
        call = self.prepare(kind, body, timeout, name=name, timestamp=timestamp, grace=grace, keep=keep, memory=memory)
        self.send(call, descriptors)
        return call

    def prepare(
        self,
        kind: str,
        body: dict[str, Any] | None,
        timeout: float | None,
        *,
        name: str | None = None,
        timestamp: float | None = None,
        grace: float = GRACE,
        keep: object = None,
        memory: object = None,
    ) -> Call:
        """A command that nobody knows of yet: who sends it can take it back whatever comes between."""
        self._require_open()
        number = next(self._ids)
        milliseconds = 2**31 - 1 if timeout is None else min(timeout * 1000, 2**31 - 1)
        frame: dict[str, Any] = {"type": kind, "id": number, "timeoutMs": float(milliseconds)}
        if name is not None:
            frame["name"] = name
        if timestamp is not None:
            frame["timestamp"] = timestamp * 1000
        if body is not None:
            frame["body"] = body
        return Call(number, frame, name or f"{kind} {number}", timeout, grace, keep, memory)

    def send(self, call: Call, descriptors: Sequence[int] = ()) -> None:
        """Sends a command that was prepared; one whose sending fails, or is interrupted, is taken back."""
        try:
            self._send(call, descriptors)
        except BaseException:
            self.take_back(call)
            raise

    def _send(self, call: Call, descriptors: Sequence[int]) -> None:
        acquired: list[bool] = []
        try:
            timeout = -1 if call.timeout is None else max(call.timeout, 0)
            acquired.extend(map(self._sending.acquire, (True,), (timeout,)))
            if not acquired[0]:
                raise self._timed_out(call)
            frame, call.frame = call.frame, {}
            if descriptors:
                frame["handOvers"] = self._hand_over(descriptors, call)
            self._outbox.append((_wire.encode(frame), [], call))
            self._flush(call.deadline, call)
        finally:
            if acquired and acquired[0]:
                self._sending.release()

    def take_back(self, call: Call) -> None:
        """Ends a command, wherever that is by now: the agent does, unless it was not sent."""
        # One that was given up is done, and the agent has it under way. Of one that it has answered it finds none.
        if call.is_released or call.is_taken_back:
            return
        call.is_taken_back = True
        is_out = any(sending is call for _, _, sending in list(self._outbox)) or call.id in self._pending
        if is_out:
            self.post("Cancel", {"command": call.id})
            self._settle_ended(call)
        elif not call.done:
            call.settle(None, make_error("TB_CANCELLED", f"{call.name}: it was not sent", {"command": call.name}))
            call.release(True)

    def post(self, kind: str, body: dict[str, Any]) -> None:
        """Sends a command whose answer nobody waits for, now or with the next one. Never blocks."""
        if self._error is not None or os.getpid() != self._pid:
            return
        frame = {"type": kind, "id": next(self._ids), "timeoutMs": 1000 * _CANCEL_TIMEOUT, "body": body}
        self._outbox.append((_wire.encode(frame), [], None))
        acquired: list[bool] = []
        try:
            acquired.extend(map(self._sending.acquire, (False,)))
            if acquired[0]:
                self._flush(time.monotonic())
        except TensorBusError:
            pass
        finally:
            if acquired and acquired[0]:
                self._sending.release()

    def _hand_over(self, descriptors: Sequence[int], call: Call) -> list[int]:
        size = int(self.welcome["limits"]["descriptors"])
        parts = [descriptors[at : at + size] for at in range(0, len(descriptors), size)]
        first = None
        assert self._descriptors is not None
        for part in parts:
            number = next(self._hand_overs)
            first = number if first is None else first
            while True:
                try:
                    _wire.send_descriptors(self._descriptors, number, part)
                    break
                except BlockingIOError:
                    self._await(self._descriptors, select.POLLOUT, call.deadline, call)
                except OSError as cause:
                    self._lost(str(cause))
                    self._require_open()
        assert first is not None
        return [first, len(parts)]

    def _flush(self, deadline: float | None, call: Call | None = None) -> None:
        """Writes what is to be sent; what an interrupt leaves is written before the next command."""
        while self._outbox:
            frame, counts, sending = self._outbox[0]
            if sending is not None and not counts:
                self._pending[sending.id] = sending
            sent = sum(counts)
            if sent == len(frame):
                self._outbox.popleft()
                continue
            try:
                counts.extend(map(self._socket.send, (memoryview(frame)[sent:],)))
            except BlockingIOError:
                self._await(self._socket, select.POLLOUT, deadline, call)
            except OSError as cause:
                self._lost(str(cause))
                self._require_open()

    def _await(self, on: socket.socket, events: int, deadline: float | None, call: Call | None) -> None:
        while not _poll(on, events, _LOOK):
            self._require_open()
            if deadline is not None and time.monotonic() >= deadline:
                if self._is_silent():
                    raise self._unresponsive(call)
                raise self._timed_out(call)

    # ---- answers -----------------------------------------------------------------------------------------

    def wait(self, call: Call, timeout: float | None = None) -> Any:
        """The answer of a command. ``timeout``: how long this wait may take, which leaves the command as it is."""
        until = None if timeout is None else time.monotonic() + timeout
        me = threading.get_ident()
        while not call.done:
            if self._error is not None:
                self._settle_ended(call)
                break
            try:
                with self._lock:
                    if self._reader is None or self._reader == me:
                        self._reader = me
                    elif not call.done:
                        self._changed.wait(_LOOK)
                if self._reader == me and not call.done:
                    self._await_readable(self._slice(call, until))
                    self._read()
            finally:
                if self._reader == me:
                    self._reader = None
                    self._notify()
            if not call.done:
                self._check_time(call, until)
        return call.result()

    def await_release(self, call: Call, timeout: float | None) -> None:
        """Waits until the agent has let go of a command, however that ended, or the seconds are over."""
        until = None if timeout is None else time.monotonic() + timeout
        with contextlib.suppress(TensorBusError):
            self.wait(call, timeout)
        # One that was given up is done, and the agent may touch its memory until its answer comes.
        while not call.is_released and self._error is None:
            left = RELEASE_LOOK if until is None else min(RELEASE_LOOK, until - time.monotonic())
            if left <= 0:
                return
            self._is_silent()
            self._await_readable(left)
            self._read()

    def require_release(self, call: Call) -> None:
        """``TB_TIMEOUT`` or ``TB_AGENT_UNRESPONSIVE`` if the agent has not let go of a command."""
        if not call.is_released and self._error is None:
            raise self._unresponsive(call) if self._is_silent() else _still_under_way(call)

    def _slice(self, call: Call, until: float | None) -> float:
        now = time.monotonic()
        ends = [end - now for end in (until, call.deadline) if end is not None and end > now]
        return max(0.0, min([_LOOK, *ends])) if until is None or until > now else 0.0

    def _check_time(self, call: Call, until: float | None) -> None:
        now = time.monotonic()
        if until is not None and now >= until:
            raise _still_under_way(call)
        silent = self._is_silent()
        if call.deadline is None or now < call.deadline:
            return
        if silent:
            self._give_up(call, self._unresponsive(call))
        elif now >= call.deadline + call.grace:
            self._give_up(call, self._timed_out(call))

    def _give_up(self, call: Call, error: TensorBusError) -> None:
        # It stays in the table: until its answer comes, the agent may still touch what it is about.
        call.settle(None, error)

    def look(self) -> None:
        """Takes what has come, without waiting."""
        if self._error is None:
            self._read()

    def fileno(self) -> int:
        return self._socket.fileno()

    def expire(self, call: Call) -> None:
        """Ends a call whose time is over, or its link: for event loops, which wait by themselves."""
        self._settle_ended(call)
        if not call.done:
            self._check_time(call, None)

    def _await_readable(self, seconds: float) -> None:
        _poll(self._socket, select.POLLIN, max(0.0, seconds))

    def _read(self) -> None:
        acquired: list[bool] = []
        try:
            acquired.extend(map(self._reading.acquire, (False,)))
            if not acquired[0]:
                return
            try:
                self._chunks.extend(map(self._socket.recv, (_READ_BYTES,)))
            except BlockingIOError:
                # What an interrupt has left is handed out all the same.
                if not self._chunks:
                    return
            except OSError as cause:
                self._lost(str(cause))
                return
            self._hand_out()
        finally:
            if acquired and acquired[0]:
                self._reading.release()

    def _hand_out(self) -> None:
        ended = bool(self._chunks) and not self._chunks[-1]
        frames, rest = _wire.decode(b"".join(self._chunks))
        for frame in frames:
            self._take(frame)
        self._chunks[:] = [rest] if rest else []
        if ended:
            self._lost("its connection was closed")
        elif frames:
            self._notify()

    def _take(self, frame: dict[str, Any]) -> None:
        kind = frame.get("type")
        if kind == "answer":
            call = self._pending.get(frame["id"])
            if call is not None:
                error = None if frame["ok"] else _error_of(frame["error"])
                call.settle(frame.get("value"), error)
                call.release(error is None or error.code != "TB_QUARANTINED")
                self._pending.pop(call.id, None)
        elif kind == "welcome":
            self.welcome = frame
        elif kind == "refused":
            self._end(_error_of(frame["error"]))
        elif kind == "draining":
            self.is_draining = True
        elif kind == "batchEnded":
            self.on_batch_end(frame["batch"], _error_of(frame["error"]))

    def _notify(self) -> None:
        with self._lock:
            self._changed.notify_all()

    # ---- the heart ---------------------------------------------------------------------------------------

    def _is_silent(self) -> bool:
        """True if the heart has not beaten for a while in which it was looked at. No clock of the agent is read."""
        if self._heart < 0:
            return False
        now = time.monotonic()
        word, since = self._beat
        try:
            found = _wire.read_word(self._heart)
        except OSError:
            return False
        if found != word:
            self._beat = (found, now)
            return False
        return now - since >= UNRESPONSIVE

    def _unresponsive(self, call: Call | None) -> TensorBusError:
        pid = self.welcome.get("pid")
        name, silence = _name_of(call), time.monotonic() - self._beat[1]
        message = f"{name}: the agent has not responded for {silence:.1f} s: rank {self.rank}, process {pid}"
        return make_error("TB_AGENT_UNRESPONSIVE", message, {"rank": self.rank, "pid": pid})

    def _timed_out(self, call: Call | None) -> TensorBusError:
        name = _name_of(call)
        return make_error("TB_TIMEOUT", f"{name}: its deadline passed", {"command": name})


def _poll(on: socket.socket, events: int, seconds: float) -> bool:
    """True if something can be done with the socket; one that another thread has closed is to fail by that."""
    descriptor = on.fileno()
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(seconds * 1000))


def _name_of(call: Call | None) -> str:
    return "sending a command" if call is None else call.name


def _still_under_way(call: Call) -> TensorBusError:
    return make_error("TB_TIMEOUT", f"{call.name}: it is still under way", {"command": call.name})


def _error_of(message: dict[str, Any]) -> TensorBusError:
    return make_error(message["code"], message["message"], message.get("details"))


def _abandon_links() -> None:
    for link in list(_links):
        link.abandon_after_fork()


with contextlib.suppress(AttributeError):
    os.register_at_fork(after_in_child=_abandon_links)
