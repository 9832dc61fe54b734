"""Ctrl-C: wherever an interrupt comes, the client stays usable, and the next round works."""

from __future__ import annotations

import asyncio
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_client import both, register
from test_life import paired

import tensorbus
from conftest import client_of
from tensorbus import _link, _semaphore, client
from tensorbus._semaphore import Semaphore

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = str(ROOT / "python" / "src" / "tensorbus")

# Asked by lines for rounds, and says how each call ended: as an interactive session would, it goes on after Ctrl-C.
_CHILD = """
import asyncio, signal, sys
import tensorbus

name, role, size, way = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
calling = False


def interrupt(*_):
    # One that comes when the call is over has nothing to end.
    if calling:
        raise KeyboardInterrupt


# asyncio knows the default handler alone. Neither is ignored, as a shell has it for what runs in its background.
signal.signal(signal.SIGINT, signal.default_int_handler if way == "await" else interrupt)
paths = tensorbus.default_paths(0)
client = tensorbus.TensorBusClient(0, paths.command_queue_path, paths.agent_state_path, 20)
tensor = tensorbus.empty(size)
weights = tensorbus.Weights(
    name, {"w": tensor}, role=role, me="here", peer="there", client=client, rank=0, world_size=1, timeout=60
)


def call(number):
    tensor[:] = number if role == "source" else 0
    print("called", flush=True)
    if role == "source":
        asyncio.run(weights.asend(number, timeout=120)) if way == "await" else weights.send(number, timeout=120)
        return number
    return asyncio.run(weights.arecv(timeout=120)) if way == "await" else weights.recv(timeout=120)


for line in sys.stdin:
    if line == "close\\n":
        break
    try:
        calling = True
        number = call(int(line))
        calling = False
        said = f"done {number}"
        assert role == "source" or bool((tensor == number).all())
    except KeyboardInterrupt:
        calling = False
        said = "interrupted"
    print(said, flush=True)
weights.close()
client.close()
print("closed", flush=True)
"""


class Child:
    """The process of rank 0, whose calls a test interrupts."""

    def __init__(self, name: str, role: str, size: int, way: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, name, role, str(size), way],
            env={**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def begin(self, number: int) -> None:
        self.tell(str(number))
        assert self.says() == "called"

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def is_silent(self, seconds: float) -> bool:
        assert self.process.stdout is not None
        return not select.select([self.process.stdout], [], [], seconds)[0]

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        self.tell("close")
        assert self.says() == "closed"
        assert self.process.wait(20) == 0

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def opposite(name: str, role: str, tensor: Any) -> tensorbus.Weights:
    """The other side than that role, in this process."""
    other = "target" if role == "source" else "source"
    return tensorbus.Weights(
        name, {"w": tensor}, role=other, me="there", peer="here", client=client_of(2), rank=0, world_size=1, timeout=60
    )


def take_part(weights: tensorbus.Weights, role: str, tensor: Any, number: int) -> None:
    """A round with the child. One that was interrupted may end this side's call too; the next is of another round."""
    if role == "target":
        tensor[:] = number
    while True:
        try:
            if role == "target":
                weights.send(number, timeout=60)
            else:
                assert weights.recv(timeout=60) == number
                assert (tensor == number).all()
            return
        except tensorbus.TensorBusError as error:
            if error.code != "TB_CANCELLED":
                raise


@pytest.mark.parametrize("way", ["block", "await"])
@pytest.mark.parametrize("role", ["source", "target"])
def test_a_wait_for_the_other_side_ends_at_once_and_the_next_round_works(
    agents: tensorbus.Agents, role: str, way: str
) -> None:
    name = f"interrupted {role} {way}"
    tensor = tensorbus.empty(8)
    with Child(name, role, 8, way) as child, opposite(name, role, tensor) as weights:
        for number in (1, 3, 5):
            child.begin(number)
            # The agent has the call: one that was not sent yet is another case.
            deadline = time.monotonic() + 30
            while role == "source" and weights.pending() != number and time.monotonic() < deadline:
                time.sleep(0.002)
            child.interrupt()
            assert child.says() == "interrupted"
            child.begin(number + 1)
            take_part(weights, role, tensor, number + 1)
            assert child.says() == f"done {number + 1}"
        child.close()


@pytest.mark.parametrize("way", ["block", "await"])
def test_the_caller_has_its_tensors_back_once_the_agent_has_let_go_of_them(agents: tensorbus.Agents, way: str) -> None:
    name = f"let go {way}"
    tensor = tensorbus.empty(8)
    with Child(name, "source", 8, way) as child, opposite(name, "source", tensor) as weights:
        agent = client_of(0).agent["pid"]
        for number in (1, 3, 5):
            child.begin(number)
            deadline = time.monotonic() + 30
            while weights.pending() != number and time.monotonic() < deadline:
                time.sleep(0.002)
            # As long as it is stopped it cannot have taken the round back: the target may still find it.
            os.kill(agent, signal.SIGSTOP)
            child.interrupt()
            assert child.is_silent(0.5)
            os.kill(agent, signal.SIGCONT)
            assert child.says() == "interrupted"
            child.begin(number + 1)
            take_part(weights, "source", tensor, number + 1)
            assert child.says() == f"done {number + 1}"
        child.close()


class Interrupted(BaseException):
    """As KeyboardInterrupt, which would end the test run where nobody expects it."""


@pytest.mark.parametrize("way", ["block", "await"])
def test_a_caller_is_warned_as_long_as_the_agent_has_its_tensors(
    agents: tensorbus.Agents, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    left, right, name = paired(f"warned {way}", 2)
    sender, _ = register((left, right, name), [np.zeros(4, np.float32)], [np.zeros(4, np.float32)])
    link, agent = left._link(), left.agent["pid"]

    def cancel(semaphore: Semaphore, error: BaseException) -> None:
        if way == "await":
            asyncio.run(semaphore._cancel_async(error))
        else:
            semaphore._cancel(error)

    async def cancel_twice(semaphore: Semaphore) -> None:
        task = asyncio.create_task(semaphore._cancel_async(asyncio.CancelledError()))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    def interrupt_again(semaphore: Semaphore) -> None:
        if way == "await":
            asyncio.run(cancel_twice(semaphore))
            return

        def end_wait(*_: object) -> None:
            raise Interrupted

        with monkeypatch.context() as patch:
            patch.setattr(link, "_read", end_wait)
            with pytest.raises(Interrupted):
                semaphore._cancel(KeyboardInterrupt())

    round_ = sender.transfer("send", timeout=60)
    os.kill(agent, signal.SIGSTOP)
    try:
        # The command is given up, which ends it for its caller alone.
        link.take_back(round_._call)
        link._give_up(round_._call, link._unresponsive(round_._call))
        monkeypatch.setattr(_semaphore, "_QUIET", 0.2)
        cancel(round_, KeyboardInterrupt())
        assert "has not let go of the tensors" in caplog.text
        caplog.clear()

        # A second interrupt ends the wait, and nothing has become quiet by that.
        monkeypatch.setattr(_semaphore, "_QUIET", 30.0)
        interrupt_again(round_)
        assert "has not let go of the tensors" in caplog.text
        caplog.clear()
        goes_on = threading.Timer(0.3, os.kill, [agent, signal.SIGCONT])
        goes_on.start()
        cancel(round_, KeyboardInterrupt())
        assert round_._call.is_released
        assert caplog.text == ""
        goes_on.join()
    finally:
        os.kill(agent, signal.SIGCONT)
        left.close()
        right.close()


def test_the_next_round_waits_for_one_that_was_given_up(agents: tensorbus.Agents) -> None:
    left, right, name = paired("given up", 2)
    sender, receiver = register((left, right, name), [np.ones(4, np.float32)], [np.zeros(4, np.float32)])
    link = left._link()
    given_up = sender.transfer("send", timeout=600)._call
    # It is over for its caller alone: the agent has it under way, and would refuse another as TB_BUSY.
    link._give_up(given_up, link._unresponsive(given_up))
    with pytest.raises(tensorbus.DeadlineError, match="still under way") as raised:
        sender.transfer("send", timeout=0.3)
    assert raised.value.code == "TB_TIMEOUT"
    link.take_back(given_up)
    sent = sender.transfer("send", timeout=60)
    assert given_up.is_released
    receiver.transfer("recv", blocking=True, timeout=60)
    sent.acquire(60)
    left.close()
    right.close()


def test_a_client_that_closes_waits_once_for_all_its_batches(
    agents: tensorbus.Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = client_of(0), client_of(2)
    calls: list[Any] = []
    handlers: list[tensorbus.BatchHandler] = []
    for name in ("waits once", "waits once too"):
        pair = left, right, name
        both(lambda name=name: left.init_pair(name, "a", "b", 1), lambda name=name: right.init_pair(name, "b", "a", 1))
        sender, receiver = register(pair, [np.ones(4, np.float32)], [np.zeros(4, np.float32)])
        handlers += sender, receiver
        calls.append(sender.transfer("send", timeout=60)._call)
        # As if it lay on a GPU.
        calls[-1].memory = name
    link, agent = left._link(), left.agent["pid"]
    link._give_up(calls[0], link._unresponsive(calls[0]))
    waits: list[tuple[bool, float]] = []
    await_release = link.await_release

    def note(call: Any, timeout: float) -> None:
        waits.append((all(each.is_taken_back for each in calls), timeout))
        await_release(call, timeout)

    monkeypatch.setattr(link, "await_release", note)
    monkeypatch.setattr(client, "_ROUND_GRACE", 0.3)
    # The memory is kept from others, since an agent that is stopped may go on.
    monkeypatch.setattr(_link, "_never_quiet", [])
    os.kill(agent, signal.SIGSTOP)
    try:
        left.close()
    finally:
        os.kill(agent, signal.SIGCONT)
    assert [taken_back for taken_back, _ in waits] == [True, True]
    # The first wait has used up what there was.
    assert waits[1][1] == 0
    assert _link._never_quiet == ["waits once", "waits once too"]
    right.close()


@pytest.mark.parametrize("scope", ["anyio", "asyncio"])
def test_a_scope_that_cancels_at_each_await_does_not_end_the_wait_for_the_agent(
    agents: tensorbus.Agents, caplog: pytest.LogCaptureFixture, scope: str
) -> None:
    anyio = pytest.importorskip("anyio") if scope == "anyio" else None
    name = f"scope of {scope}"
    given, taken = tensorbus.empty(4), tensorbus.empty(4)

    def make_source() -> tensorbus.Weights:
        return tensorbus.Weights(
            name, {"w": given}, role="source", me="here", peer="there", client=client_of(0), rank=0, world_size=1
        )

    source, target = both(make_source, lambda: opposite(name, "source", taken))
    agent = source.client.agent["pid"]

    def stop() -> None:
        # As long as it is stopped it cannot let go of the tensors.
        os.kill(agent, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, [agent, signal.SIGCONT]).start()

    async def cancel_by_anyio() -> None:
        assert anyio is not None
        with anyio.CancelScope() as cancels:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: source.asend(1, timeout=60))
                await anyio.sleep(0.1)
                stop()
                cancels.cancel()

    async def cancel_again_and_again() -> None:
        task = asyncio.create_task(source.asend(1, timeout=60))
        await asyncio.sleep(0.1)
        stop()
        while not task.done():
            task.cancel("Cancelled via cancel scope 7f01 by <Task>")
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_by_anyio() if scope == "anyio" else cancel_again_and_again())
    (_, call), *_ = source._open._registration._rounds
    assert call.is_released
    assert caplog.text == ""
    given[:] = 2
    both(lambda: source.send(2, timeout=60), lambda: take_part(target, "source", taken, 2))
    source.close()
    target.close()


def test_a_task_that_awaits_what_is_done_leaves_the_reader_of_others(agents: tensorbus.Agents) -> None:
    left, right, name = paired("reader of others", 2)
    sender, _ = register((left, right, name), [np.zeros(4, np.float32)], [np.zeros(4, np.float32)])
    link = left._link()
    done = link.submit("QueryStatus", {"batch": sender.batch_id, "instance": sender._registration.instance}, 10)
    link.wait(done)

    async def run() -> None:
        waits = asyncio.create_task(sender.transfer("send", timeout=60).wait())
        await asyncio.sleep(0.05)
        readers = _semaphore._readers(asyncio.get_running_loop())
        assert readers == {link.fileno(): 1}
        await _semaphore.await_call(link, done)
        assert readers == {link.fileno(): 1}
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert readers == {}

    asyncio.run(run())
    left.close()
    right.close()


def test_a_coroutine_that_is_closed_takes_its_round_back(agents: tensorbus.Agents) -> None:
    name = "closed coroutine"
    given, taken = tensorbus.empty(4), tensorbus.empty(4)

    def make_source() -> tensorbus.Weights:
        return tensorbus.Weights(
            name, {"w": given}, role="source", me="here", peer="there", client=client_of(0), rank=0, world_size=1
        )

    source, target = both(make_source, lambda: opposite(name, "source", taken))

    async def begin_and_close() -> None:
        coroutine = source.asend(1, timeout=60)
        coroutine.send(None)
        coroutine.close()

    asyncio.run(begin_and_close())
    (_, call), *_ = source._open._registration._rounds
    assert call.is_taken_back
    given[:] = 2
    both(lambda: source.send(2, timeout=60), lambda: take_part(target, "source", taken, 2))
    source.close()
    target.close()


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_round_that_moves_ends_on_all_ranks_and_the_next_one_works(agents: tensorbus.Agents, role: str) -> None:
    name = f"moving {role}"
    size = 1 << 26
    tensor = tensorbus.empty(size)
    failures: list[tuple[str, int]] = []
    with Child(name, role, size, "block") as child, opposite(name, role, tensor) as weights:
        registration = weights._open._registration

        def try_part(number: int) -> None:
            try:
                if role == "target":
                    tensor[:] = number
                    weights.send(number, timeout=60)
                else:
                    weights.recv(timeout=60)
            except tensorbus.TensorBusError as error:
                failures.append((error.code, error.details["rank"]))

        # A round may be over before the interrupt comes: then it is tried anew.
        for number in range(1, 41):
            here = threading.Thread(target=try_part, args=(number,))
            child.begin(number)
            here.start()
            while here.is_alive():
                progress = weights.client._query(registration, 30.0).get("progress")
                if progress is not None and int(progress["bytesDone"]) > 0:
                    child.interrupt()
                    break
            said = child.says()
            here.join()
            assert said in ("interrupted", f"done {number}")
            if len(failures) == 2:
                break
        assert set(failures) == {("TB_CANCELLED", 0)}
        child.begin(99)
        take_part(weights, role, tensor, 99)
        assert child.says() == "done 99"
        child.close()


class Taker:
    """Receives on a thread of its own, round after round, whatever becomes of each."""

    def __init__(self, handler: tensorbus.BatchHandler, tensor: Any) -> None:
        self.taken: list[int] = []
        self.failures: list[BaseException] = []
        self._handler, self._tensor = handler, tensor
        self._ends = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ends:
            try:
                client, registration = self._handler.client, self._handler._registration
                version = client._transfer(registration, "recv", True, 60, tell_version=True).result()["version"]
                assert (self._tensor == version).all()
                self.taken.append(version)
            except tensorbus.TensorBusError as error:
                if error.code not in ("TB_CANCELLED", "TB_INVALIDATED", "TB_CLOSED", "TB_PEER_LOST"):
                    self.failures.append(error)
                    return
            except BaseException as error:
                self.failures.append(error)
                return

    def has(self, version: int) -> bool:
        deadline = time.monotonic() + 60
        while version not in self.taken and time.monotonic() < deadline and not self.failures:
            time.sleep(0.001)
        return version in self.taken

    def end(self) -> None:
        self._ends = True

    def join(self) -> None:
        self._thread.join(90)
        assert not self._thread.is_alive()


def interrupted_at(point: int, call: Callable[[], object]) -> bool:
    """Runs a call, and interrupts it at one of the points where Python would: behind each call into C, and at the
    beginning of each function of the package. False if it has no such point: it was not interrupted."""
    passed = 0

    def profile(frame: Any, event: str, _: object) -> None:
        nonlocal passed
        if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        passed += 1
        if passed > point:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_an_interrupt_at_every_point_of_a_send(agents: tensorbus.Agents) -> None:
    left, right, name = paired("every point", 2)
    given: Any = np.zeros(4, np.float32)
    taken: Any = np.zeros(4, np.float32)
    sender, receiver = register((left, right, name), [given], [taken])
    taker = Taker(receiver, taken)
    version, point = 0, 0

    def send() -> None:
        nonlocal version
        version += 1
        given[:] = version
        sender.transfer("send", blocking=True, timeout=60, version=version)

    try:
        while interrupted_at(point, send):
            send()
            assert taker.has(version), (point, taker.failures)
            point += 1
        assert point > 50
        # Nothing is left of what was interrupted.
        assert left._link()._pending.keys() <= {call.id for call in left._link()._pending.values() if call.done}
        assert not left._link()._sending.locked()
        assert not left._link()._reading.locked()
    finally:
        taker.end()
        left.close()
        right.close()
        taker.join()
    assert taker.failures == []
