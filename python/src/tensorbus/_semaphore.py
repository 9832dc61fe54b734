"""What ``transfer`` returns: a semaphore of one count, as the original client has it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from ._link import RELEASE_LOOK, Call, Link
from .errors import DeadlineError, TensorBusError

# How long a round that was taken back may hold its caller; an agent that lives answers within milliseconds.
_QUIET = 5.0
_logger = logging.getLogger("tensorbus")


def _busy_error() -> type[Exception] | None:
    try:
        import posix_ipc
    except ImportError:
        return None
    kind: type[Exception] = posix_ipc.BusyError
    return kind


class Semaphore:
    """Has its count once the round has ended, or raises what the round failed with.

    A wait that ends by its own timeout leaves the round as it is.

    Attributes:
        name: The name of the command, as the agent's log has it.
    """

    def __init__(
        self,
        link: Link,
        call: Call,
        finish: Callable[[dict[str, Any]], dict[str, Any]],
        fail: Callable[[], None],
    ) -> None:
        self.name = call.name
        self._link = link
        self._call = call
        self._finish = finish
        self._fail = fail
        self._lock = threading.RLock()
        self._counted = threading.Condition(self._lock)
        self._count = 0
        self._result: dict[str, Any] | None = None

    def acquire(self, timeout: float | None = None) -> None:
        """Waits for the end of the round and takes the count. ``timeout`` in seconds: ``None`` for ever, 0 at once.

        Raises:
            TimeoutError: It has not ended yet (also ``posix_ipc.BusyError`` if that is installed).
            TensorBusError: What the round failed with.
        """
        until = None if timeout is None else time.monotonic() + timeout
        self._wait(timeout)
        with self._lock:
            while self._count == 0:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise _as_busy(DeadlineError("TB_TIMEOUT", f"{self.name}: its count was taken"))
                self._counted.wait(left)
            self._count -= 1

    def release(self) -> None:
        """Gives a count back."""
        with self._lock:
            self._count += 1
            self._counted.notify()

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Waits for the end of the round: what it moved. The count stays. Errors are those of ``acquire``."""
        self._wait(timeout)
        assert self._result is not None
        return self._result

    def done(self) -> bool:
        """True once the round has ended, well or not. Never waits."""
        if not self._call.done:
            self._link.look()
        return self._call.done

    def _wait(self, timeout: float | None) -> None:
        try:
            value = self._link.wait(self._call, timeout)
        except DeadlineError as error:
            if not self._call.done:
                raise _as_busy(error) from None
            self._fail()
            raise error from None
        except TensorBusError:
            self._fail()
            raise
        self._settle(value)

    def _cancel(self, error: BaseException) -> None:
        """Takes the round back on all ranks if it has not ended, as ``error`` has ended its call.

        After an interrupt it waits until the agent touches none of its tensors: its caller goes on, and writes the
        next step into them. A second interrupt ends the wait. A failure is told within the caller's own time.
        """
        with self._taken_back(error) as waits:
            if waits:
                self._link.await_release(self._call, _QUIET)

    async def _cancel_async(self, error: BaseException) -> None:
        """As ``_cancel``, for asyncio: a task that is cancelled a second time waits no longer."""
        with self._taken_back(error) as waits:
            if waits:
                await _hold(await_release(self._link, self._call), _QUIET)

    @contextlib.contextmanager
    def _taken_back(self, error: BaseException) -> Iterator[bool]:
        """Gives whether the agent is waited for: not after a failure; a closed coroutine may await nothing."""
        is_interrupt = _is_interrupt(error)
        try:
            self._link.take_back(self._call)
            yield is_interrupt
        finally:
            if is_interrupt and not self._call.is_released:
                _logger.warning(
                    "%s was taken back, and its agent has not let go of the tensors yet: write to none of them before "
                    "the next call of the batch has ended",
                    self.name,
                )

    def _settle(self, value: dict[str, Any]) -> None:
        with self._lock:
            if self._result is None:
                self._result = self._finish(value)
                self._count += 1
                self._counted.notify()

    async def wait(self) -> dict[str, Any]:
        """As ``result``, for asyncio: the event loop reads the socket itself."""
        try:
            value = await await_call(self._link, self._call)
        except TensorBusError:
            self._fail()
            raise
        self._settle(value)
        assert self._result is not None
        return self._result

    def close(self) -> None:
        """Nothing is left to be closed: it is no file."""

    def unlink(self) -> None:
        """Nothing is left to be removed: it is no file."""

    def __enter__(self) -> Semaphore:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _is_interrupt(error: BaseException) -> bool:
    """True if a call ended by what came from outside: Ctrl-C, the end of the process, the cancelling of its task."""
    return not isinstance(error, (Exception, GeneratorExit))


def _as_busy(error: TensorBusError) -> TensorBusError:
    busy = _busy_error()
    if busy is None:
        return error
    kind = type("DeadlineError", (DeadlineError, busy), {})
    made: TensorBusError = kind(error.code, error.message, error.details)
    return made


async def await_release(link: Link, call: Call) -> None:
    """As ``Link.await_release``, for asyncio: without a bound of its own."""
    with contextlib.suppress(TensorBusError):
        await await_call(link, call)
    # One that was given up is done, and the agent may touch its memory until its answer comes.
    while not call.is_released and link.is_open:
        await asyncio.sleep(RELEASE_LOOK)
        link.look()


# How anyio 4 begins the messages of its cancellations.
_SCOPE_MESSAGES = ("Cancelled by cancel scope ", "Cancelled via cancel scope ")


async def _hold(work: Coroutine[Any, Any, None], seconds: float) -> None:
    """Awaits work for at most so many seconds in a task that is cancelled.

    Scopes of anyio cancel their tasks again at every await, which is no second interrupt: it ends no wait.
    """
    task = asyncio.ensure_future(work)
    until = time.monotonic() + seconds
    try:
        while not task.done() and time.monotonic() < until:
            try:
                await asyncio.wait([task], timeout=max(0.0, until - time.monotonic()))
            except asyncio.CancelledError as error:
                if not str(error).startswith(_SCOPE_MESSAGES):
                    raise
        if task.done():
            task.result()
    finally:
        task.cancel()


async def await_call(link: Link, call: Call) -> Any:
    """The answer of a command, on an event loop that reads the socket as long as somebody waits."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell(_: Call) -> None:
        loop.call_soon_threadsafe(ended.set)

    call.on_done(tell)
    readers = _readers(loop)
    descriptor = link.fileno()
    # One that is done on entry counts for nothing, and must not take away the reader of others.
    is_counted = not call.done and descriptor >= 0
    if is_counted:
        readers[descriptor] = readers.get(descriptor, 0) + 1
        loop.add_reader(descriptor, link.look)
    try:
        # What came before the loop watched has to be looked for.
        link.look()
        while not call.done:
            if not link.is_open:
                link.expire(call)
                continue
            try:
                await asyncio.wait_for(ended.wait(), 0.25)
            except asyncio.TimeoutError:
                # An answer that has come in time is not to be overtaken by the clock.
                link.look()
                link.expire(call)
    finally:
        # The loop may be closed before the command ends: a task that was cancelled leaves it so.
        call.forget(tell)
        if is_counted:
            readers[descriptor] -= 1
            if readers[descriptor] <= 0:
                del readers[descriptor]
                loop.remove_reader(descriptor)
    return call.result()


_watched: dict[int, dict[int, int]] = {}


def _readers(loop: asyncio.AbstractEventLoop) -> dict[int, int]:
    return _watched.setdefault(id(loop), {})
