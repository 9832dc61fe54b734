"""The original's API against real agents."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import tensorbus
from conftest import client_of

Clients = tuple[tensorbus.TensorBusClient, tensorbus.TensorBusClient]


def both(*calls: Any) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


@pytest.fixture
def pair(agents: tensorbus.Agents, request: pytest.FixtureRequest) -> Any:
    """Clients of ranks 0 and 2, and a pair without layouts."""
    name = request.node.name
    with client_of(0) as left, client_of(2) as right:
        both(lambda: left.init_pair(name, "a", "b", 1), lambda: right.init_pair(name, "b", "a", 1))
        yield left, right, name


def register(pair: Any, left: Any, right: Any, **more: Any) -> list[tensorbus.BatchHandler]:
    first, second, name = pair
    return both(
        lambda: first.register_tensors(name, [(tensor, name) for tensor in left], **more),
        lambda: second.register_tensors(name, [(tensor, name) for tensor in right], **more),
    )


def test_moves_copies_and_shared_tensors(pair: Any) -> None:
    given = [np.arange(12, dtype=np.float32).reshape(3, 4), tensorbus.empty((5,), "int64")]
    given[1][:] = [1, 2, 3, 4, 5]
    taken = [tensorbus.empty((3, 4), "float32"), np.zeros(5, np.int64)]
    sender, receiver = register(pair, given, taken)
    assert sender.pair_names == [pair[2]]
    assert sender.copied_bytes == 48
    assert receiver.copied_bytes == 40
    for round_number in (1, 2):
        given[0] += 1
        given[1] *= 2
        sent = sender.transfer("send")
        got = receiver.transfer("recv")
        got.acquire(10)
        sent.acquire(10)
        assert sent.result()["round"] == round_number
        for one, other in zip(given, taken, strict=True):
            np.testing.assert_array_equal(one, other)
    sender.close()
    sender.close()
    assert not sender.is_open
    with pytest.raises(RuntimeError, match="TB_CLOSED"):
        sender.transfer("send")


def test_strided_views_and_other_types(pair: Any) -> None:
    base: Any = np.arange(40, dtype=np.float64).reshape(4, 10)
    taken: Any = np.zeros((10, 2), np.float32)
    sender, receiver = register(pair, [base[::2].T], [taken])
    sender.transfer("send")
    receiver.transfer("recv", blocking=True)
    np.testing.assert_array_equal(taken, base[::2].T.astype(np.float32))


def test_signal_and_semaphore(pair: Any) -> None:
    sender, receiver = register(pair, [np.ones(3, np.float32)], [np.zeros(3, np.float32)])
    assert receiver.query_transfer_signal() is False
    semaphore = sender.transfer("send")
    with pytest.raises(TimeoutError):
        semaphore.acquire(0)
    with pytest.raises(TimeoutError):
        semaphore.acquire(0.05)
    while not receiver.query_transfer_signal():
        pass
    assert not semaphore.done()
    with receiver.transfer("recv"):
        pass
    semaphore.acquire()
    with pytest.raises(TimeoutError):
        semaphore.acquire(0.01)
    semaphore.release()
    semaphore.acquire(0)
    semaphore.unlink()
    semaphore.close()
    assert semaphore.name.startswith("/command_Transfer_")


def test_errors_are_pythons(pair: Any) -> None:
    left, _, name = pair
    with pytest.raises(ValueError, match="registered already") as exists:
        left.init_pair(name, "a", "b", 1, timeout=5)
    assert exists.value.code == "TB_EXISTS"  # type: ignore[attr-defined]
    with pytest.raises(TimeoutError, match="TB_TIMEOUT"):
        left.init_pair("alone", "a", "b", 1, timeout=0.2)
    with pytest.raises(ValueError, match="not registered by this client"):
        left.transfer("nothing", "send")
    with pytest.raises(ValueError, match='"send" or "recv"'):
        left.transfer("nothing", "both")
    with pytest.raises(ValueError, match="at least one"):
        left.register_tensors("empty", [])
    with pytest.raises(ValueError, match="TB_MESH"):
        left.init_pair("meshes", "a", "b", 2, tensorbus.Mesh((2,), ranks=(5, 6)), ["S(0)"])
    with pytest.raises(ValueError, match="a mesh of 4 ranks, and side a has 2 in all"):
        left.init_pair("meshes", "a", "b", 2, tensorbus.Mesh((4,)), ["S(0)"])
    with pytest.raises(ValueError, match="TB_PLACEMENT"):
        left.init_pair("meshes", "a", "b", 2, tensorbus.Mesh((2,)), ["S(0)", "R"])
    with pytest.raises(ValueError, match="TB_DTYPE"):
        left.register_tensors("types", [(np.zeros(2, np.complex128), name)])
    with pytest.raises(TypeError, match="DLPack"):
        left.register_tensors("types", [([1, 2], name)])
    with pytest.raises(AttributeError, match="LMDB object of the original"):
        _ = left.command_queue


def test_round_that_times_out(pair: Any) -> None:
    sender, receiver = register(pair, [np.ones(3, np.float32)], [np.zeros(3, np.float32)])
    with pytest.raises(TimeoutError) as failure:
        sender.transfer("send", blocking=True, timeout=0.3)
    assert failure.value.code == "TB_TIMEOUT"  # type: ignore[attr-defined]
    assert sender.is_open
    assert receiver.is_open


def test_no_agent_says_which_there_are(agents: tensorbus.Agents) -> None:
    with pytest.raises(ConnectionError, match=r"no agent of rank 9 at .*; agents here: 0-3") as failure:
        client_of(9, timeout=0.2)
    assert any("tensorbus agents --side" in note for note in vars(failure.value)["__notes__"])
    assert failure.value.__suppress_context__


def test_agent_of_another_rank(agents: tensorbus.Agents) -> None:
    with pytest.raises(ConnectionError, match="is that of rank 0, not 1"):
        tensorbus.TensorBusClient(1, tensorbus.default_paths(0).command_queue_path, None, 1.0)


def test_many_threads_share_a_client(pair: Any) -> None:
    left = pair[0]
    register(pair, [np.ones(3, np.float32)], [np.zeros(3, np.float32)])[0]
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(100):
                with pytest.raises(ValueError):
                    left._query(_Fake(left), 5.0)
        except BaseException as error:
            failures.append(error)

    class _Fake:
        def __init__(self, client: Any) -> None:
            self.link, self.batch_id, self.instance = client._link(), "none", 1

        def require_open(self) -> None:
            pass

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_handler_that_is_forgotten_frees_its_batch(pair: Any) -> None:
    handlers = register(pair, [np.ones(3, np.float32)], [np.zeros(3, np.float32)])
    del handlers
    gc.collect()
    handlers = register(pair, [np.ones(3, np.float32)], [np.zeros(3, np.float32)])
    assert handlers[0].is_open


def test_a_client_that_is_collected(agents: tensorbus.Agents) -> None:
    clients = [client_of(1), client_of(3)]
    both(
        lambda: clients[0].init_pair("collected", "a", "b", 1),
        lambda: clients[1].init_pair("collected", "b", "a", 1),
    )
    handler, _ = register((*clients, "collected"), [np.ones(2)], [np.ones(2)])
    right = clients.pop()
    clients.clear()
    gc.collect()
    with pytest.raises(RuntimeError, match="was collected"):
        _ = handler.client
    right.close()


def test_bootstrap(agents: tensorbus.Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("AGENT_RANK_OFFSET", "2")
    client, info = tensorbus.bootstrap_client()
    assert (client.agent_rank, info.method, info.rank, info.agent_rank_offset) == (3, "offset", 1, 2)
    client.close()
    monkeypatch.setenv("AGENT_RANK", "2")
    client, info = tensorbus.bootstrap_client()
    assert (client.agent_rank, info.method) == (2, "direct")
    assert client.agent["rank"] == 2
    client.close()
    monkeypatch.setenv("AGENT_RANK", "two")
    with pytest.raises(ValueError, match="AGENT_RANK must be a number"):
        tensorbus.bootstrap_client()
    for name in ("AGENT_RANK", "RANK"):
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=r"AGENT_RANK is not set, nor RANK.*\(TB_ENVIRONMENT\)"):
        tensorbus.bootstrap_client()


def test_names_of_semaphores() -> None:
    names = {tensorbus.generate_semaphore_name("Transfer", "a/b:c d") for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("/command_Transfer_a_b_c_d_") for name in names)
    assert len(tensorbus.generate_semaphore_name("X", "é" * 500).encode()) <= 252
