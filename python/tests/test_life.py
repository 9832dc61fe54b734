"""Ends of all kinds: of agents, of clients, of processes that fork or are interrupted; clients in other namespaces."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from test_client import both, register

import tensorbus
from conftest import client_of
from tensorbus._link import Call
from tensorbus._semaphore import await_call

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def alone(_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[tensorbus.Agents]:
    """Two agents that a test may kill."""
    monkeypatch.setenv("TENSOR_BUS_NAMESPACE", "alone")
    with tensorbus.start_agents(2, namespace="alone", flags=["--log", "error", "--drain", "1"]) as started:
        yield started


def paired(name: str, right_rank: int = 1) -> Any:
    left, right = client_of(0), client_of(right_rank)
    both(lambda: left.init_pair(name, "a", "b", 1), lambda: right.init_pair(name, "b", "a", 1))
    return left, right, name


def within(seconds: float, call: Callable[[], Any]) -> Any:
    began = time.monotonic()
    try:
        return call()
    finally:
        assert time.monotonic() - began < seconds


def test_an_agent_that_is_stopped_and_one_that_is_killed(alone: tensorbus.Agents) -> None:
    left, right, name = paired("stopped")
    sender, receiver = register((left, right, name), [np.ones(4)], [np.zeros(4)])
    pid = left.agent["pid"]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(
        ConnectionError, match=r"QueryStatus_stopped\S*: the agent has not responded for [\d.]+ s: rank 0, process"
    ) as stopped:
        within(6, lambda: sender.query_transfer_signal(timeout=0.2))
    assert stopped.value.code == "TB_AGENT_UNRESPONSIVE"  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGCONT)
    assert sender.query_transfer_signal(timeout=5) is False
    waiting = receiver.transfer("recv", timeout=60)
    under_way = sender.transfer("send", timeout=60)
    under_way.acquire()
    waiting.acquire()
    lonely = sender.transfer("send", timeout=60)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ConnectionError, match="ended") as killed:
        within(5, lonely.acquire)
    assert killed.value.code == "TB_AGENT_LOST"  # type: ignore[attr-defined]
    assert not sender.is_open
    with pytest.raises(ConnectionError):
        within(2, lambda: left.query_transfer_signal(name, timeout=1))
    left.close()
    right.close()


_INTERRUPTED = """
import signal, time, numpy, tensorbus
paths = tensorbus.default_paths(0)
client = tensorbus.TensorBusClient(0, paths.command_queue_path, None, 10)
signal.signal(signal.SIGALRM, signal.default_int_handler)
for seconds in (0.0005, 0.002, 0.01, 0.1, 0.3):
    began = time.monotonic()
    try:
        # Again and again: Python drops an interrupt that comes in a finalizer.
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
        client.init_pair(f"nobody comes {seconds}", "a", "b", 1, timeout=60)
        raise SystemExit("it was not interrupted")
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert time.monotonic() - began < 5
    try:
        client.transfer("nothing", "send")
    except ValueError:
        pass
    # Answered by the agent: the connection is in step.
    assert client._link().wait(client._link().submit("Cancel", {"command": 1}, 5.0)) == {"found": False}
client.close()
"""


def test_what_could_not_be_sent_ends_in_its_time_and_with_its_agent(alone: tensorbus.Agents) -> None:
    left, right, name = paired("full")
    sender, _ = register((left, right, name), [np.ones(4)], [np.zeros(4)])
    link = left._link()
    os.kill(left.agent["pid"], signal.SIGSTOP)
    # Nobody reads: this fills the socket, and what comes behind it is not sent.
    with pytest.raises(TimeoutError):
        link.submit("QueryStatus", {"batch": "b" * (8 << 20)}, 0.1)
    with pytest.raises(TimeoutError):
        within(1.5, lambda: sender.transfer("send", timeout=0.1))
    unsent = link.prepare("QueryStatus", {"batch": "b"}, 0.1)
    with pytest.raises(TimeoutError):
        link.send(unsent)
    assert not unsent.done
    os.kill(left.agent["pid"], signal.SIGKILL)
    with pytest.raises(ConnectionError) as lost:
        within(5, lambda: link.wait(link._pending[min(link._pending)]))
    assert lost.value.code == "TB_AGENT_LOST"  # type: ignore[attr-defined]
    assert unsent.is_released
    with pytest.raises(ConnectionError) as ended:
        link.wait(unsent)
    assert ended.value.code == "TB_AGENT_LOST"  # type: ignore[attr-defined]
    # As one that nobody knew of when the link ended.
    late = Call(1 << 20, {}, "late", 1.0, 0, None, None)
    with pytest.raises(ConnectionError):
        link.wait(late)
    with pytest.raises(ConnectionError):
        asyncio.run(await_call(link, Call(1 << 21, {}, "late", 1.0, 0, None, None)))


def test_an_interrupt_leaves_a_usable_client(alone: tensorbus.Agents) -> None:
    done = run_client(code=_INTERRUPTED)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_child_has_no_part_in_its_parents_client(alone: tensorbus.Agents) -> None:
    left, right, name = paired("forked")
    handlers = register((left, right, name), [np.ones(4)], [np.zeros(4)])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            handlers[0].transfer("send")
        except RuntimeError as error:
            status = 0 if "make one" in str(error) else 2
        finally:
            # Finalizers run as at any exit of a child.
            del handlers, left, right
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    sent, got = handlers[0].transfer("send"), handlers[1].transfer("recv")
    got.acquire(10)
    sent.acquire(10)
    left.close()
    right.close()


def run_client(*prefix: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


_PEER = """
import numpy, tensorbus
paths = tensorbus.default_paths(1)
client = tensorbus.TensorBusClient(1, paths.command_queue_path, None, 10)
client.init_pair("spaces", "b", "a", 1)
target = tensorbus.empty(3, "float32")
handler = client.register_tensors("spaces", [(target, "spaces")])
handler.transfer("recv", blocking=True)
assert target.tolist() == [1, 2, 3], target
print("pid", __import__("os").getpid())
"""


def test_a_client_in_namespaces_of_its_own(alone: tensorbus.Agents) -> None:
    """Neither the process nor the user of the client is known to the agent by its own number."""
    prefix = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system lets nobody unshare namespaces")
    left = client_of(0)

    def send() -> None:
        left.init_pair("spaces", "a", "b", 1)
        source = np.array([1, 2, 3], np.float32)
        left.register_tensors("spaces", [(source, "spaces")]).transfer("send", blocking=True)

    done, _ = both(lambda: run_client(*prefix, code=_PEER), send)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("pid 1", "pid 2")
    left.close()


def test_a_client_that_ends_in_the_middle_of_a_round(alone: tensorbus.Agents) -> None:
    left = client_of(0)
    code = _PEER.replace('handler.transfer("recv", blocking=True)', "import os; os._exit(0)")

    def send() -> str:
        left.init_pair("spaces", "a", "b", 1)
        handler = left.register_tensors("spaces", [(np.ones(3, np.float32), "spaces")])
        try:
            handler.transfer("send", blocking=True, timeout=20)
        except tensorbus.TensorBusError as error:
            return error.code
        return "nothing"

    done, code_of_failure = both(lambda: run_client(code=code), lambda: within(15, send))
    assert done.returncode == 0, done.stderr
    assert code_of_failure in ("TB_INVALIDATED", "TB_CLIENT_LOST", "TB_PEER_LOST", "TB_CANCELLED", "TB_BATCH_UNKNOWN")
    left.close()


def test_a_thousand_clients_leave_nothing_behind(agents: tensorbus.Agents) -> None:
    # What the first one imports stays open. Clients that earlier tests left in cycles would be collected in between.
    client_of(0).close()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    keeper = client_of(1)
    pid = keeper.agent["pid"]
    with_keeper = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(1000):
        tensorbus.TensorBusClient(1, tensorbus.default_paths(1).command_queue_path, None, 5).close()
    assert keeper.agent["pid"] == pid
    keeper.close()
    assert len(os.listdir("/proc/self/fd")) == before
    last = client_of(1)
    deadline = time.monotonic() + 5
    while len(os.listdir(f"/proc/{pid}/fd")) > with_keeper + 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(os.listdir(f"/proc/{pid}/fd")) <= with_keeper + 2
    last.close()


_OTHER_USER = """
import os, sys, tensorbus
os.setuid(int(sys.argv[1]))
try:
    client = tensorbus.TensorBusClient(0, None, None, 2.0)
    print(client.agent["rank"])
except tensorbus.TensorBusError as error:
    print(error.code)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.usefixtures("_environment")
def test_other_users_are_refused_unless_they_were_named() -> None:
    def outcome(user: int, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", _OTHER_USER, str(user)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "python" / "src"), **more},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = os.path.join(folder, "client.sock")
        flags = ["--log", "silent", "--client-socket", path, "--client-uid", "4242"]
        with tensorbus.start_agents(1, namespace="users", flags=flags):
            assert outcome(4242, TENSOR_BUS_CLIENT_SOCKET=path) == "0"
            assert outcome(4243, TENSOR_BUS_CLIENT_SOCKET=path) == "TB_FOREIGN"
            assert outcome(0, TENSOR_BUS_CLIENT_SOCKET=path) == "0"
