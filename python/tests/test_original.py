"""Programs written against the original client run with another import, and with nothing else changed."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import pytest

import tensorbus

torch = pytest.importorskip("torch")

# What stands in such a program before its first line of work; the module's name is all that changes.
ORIGINAL = "from etha.tensor_bus.client import ("
HERE = "from tensorbus.client import ("

TRAINER_AND_ENGINE = """
from etha.tensor_bus.client import (
    BatchHandler,
    TensorBusClient,
    bootstrap_client,
    generate_semaphore_name,
    logger,
)
from torch.distributed.tensor import Replicate, Shard


def run(rank, tensor, mesh, side, remote, placements, direction, result):
    client = TensorBusClient(
        agent_rank=rank,
        lmdb_command_queue_path=queues[rank],
        agent_state_lmdb_path=states[rank],
        connection_timeout=30.0,
    )
    client.init_pair(
        pair_name="weights",
        local_name=side,
        remote_name=remote,
        expected_world_size=2,
        device_mesh=mesh,
        placements=placements,
        blocking=True,
        timeout=30.0,
    )
    handler = client.register_tensors("step", [(tensor, "weights")], bucket_size=1 << 20, timeout=30.0)
    assert isinstance(handler, BatchHandler)
    assert handler.batch_id == "step" and handler.pair_names == ["weights"] and handler.client is client
    for step in range(3):
        if direction == "send":
            tensor += 1
        semaphore = handler.transfer(direction, blocking=False, timeout=30.0)
        semaphore.acquire(30.0)
        semaphore.close()
        result.append(tensor.clone())
    assert client.query_transfer_signal("step", blocking=True, timeout=30.0) is False
    other = client.transfer("step", direction, True, 30.0)
    other.acquire(0)
    # A batch ends on all ranks with the first that closes it.
    barrier.wait(30.0)
    handler.close(blocking=True, timeout=30.0)
    handler.close()
    client.close()
    assert (client.agent_rank, client.agent_state_lmdb_path) == (rank, states[rank])
    logger.debug("%s is done: %s", side, generate_semaphore_name("Transfer", "step"))
"""


class _Mesh:
    """What is asked of a DeviceMesh, for ranks that are threads here."""

    def __init__(self, ranks: list[int]) -> None:
        self.mesh = torch.tensor(ranks)
        self.mesh_dim_names = ("dp",)


def test_a_program_of_the_original_runs_with_another_import(
    agents: tensorbus.Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tensorbus.default_paths(rank) for rank in range(4)]
    scope: dict[str, Any] = {
        "queues": [path.command_queue_path for path in paths],
        "states": [path.agent_state_path for path in paths],
        "barrier": threading.Barrier(4),
    }
    assert ORIGINAL in TRAINER_AND_ENGINE
    exec(TRAINER_AND_ENGINE.replace(ORIGINAL, HERE), scope)
    whole = torch.arange(15, dtype=torch.float32).reshape(5, 3)
    # Uneven: the original lost the tail.
    sent = [whole[:3].clone(), whole[3:].clone()]
    taken = [torch.zeros(5, 2), torch.zeros(5, 1)]
    results: list[list[Any]] = [[] for _ in range(4)]
    failures: list[BaseException] = []

    # Ranks of a side are those of its job: each is asked for while a client is made, and when a pair is registered.
    lock = threading.local()
    monkeypatch.setattr("tensorbus.client.own_rank", lambda: lock.rank)

    def start(rank: int) -> None:
        lock.rank = rank % 2
        source = rank < 2
        side, remote = ("trainer", "engine") if source else ("engine", "trainer")
        placements = [scope["Shard"](0 if source else 1)]
        tensor = (sent if source else taken)[rank % 2]
        try:
            scope["run"](
                rank, tensor, _Mesh([0, 1]), side, remote, placements, "send" if source else "recv", results[rank]
            )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for step in range(3):
        expected = whole + step + 1
        assert torch.equal(torch.cat([results[2][step], results[3][step]], dim=1), expected)


# Parameters in their order with their defaults, as the original's API reference has them.
NO_DEFAULT = inspect.Parameter.empty
SIGNATURES: list[tuple[Any, list[tuple[str, Any]]]] = [
    (
        tensorbus.TensorBusClient,
        [
            ("agent_rank", NO_DEFAULT),
            ("lmdb_command_queue_path", None),
            ("agent_state_lmdb_path", None),
            ("connection_timeout", 30.0),
        ],
    ),
    (
        tensorbus.TensorBusClient.init_pair,
        [
            ("pair_name", NO_DEFAULT),
            ("local_name", NO_DEFAULT),
            ("remote_name", NO_DEFAULT),
            ("expected_world_size", NO_DEFAULT),
            ("device_mesh", None),
            ("placements", None),
            ("blocking", True),
            ("timeout", 30.0),
        ],
    ),
    (
        tensorbus.TensorBusClient.register_tensors,
        [("batch_id", NO_DEFAULT), ("tensors", NO_DEFAULT), ("bucket_size", None), ("timeout", 30.0)],
    ),
    (
        tensorbus.TensorBusClient.transfer,
        [("batch_id", NO_DEFAULT), ("transfer_type", NO_DEFAULT), ("blocking", False), ("timeout", 30.0)],
    ),
    (
        tensorbus.TensorBusClient.query_transfer_signal,
        [("batch_id", NO_DEFAULT), ("blocking", True), ("timeout", 30.0)],
    ),
    (tensorbus.TensorBusClient.close, []),
    (tensorbus.BatchHandler.transfer, [("transfer_type", NO_DEFAULT), ("blocking", False), ("timeout", 30.0)]),
    (tensorbus.BatchHandler.query_transfer_signal, [("blocking", True), ("timeout", 30.0)]),
    (tensorbus.BatchHandler.close, [("blocking", True), ("timeout", 30.0)]),
    (tensorbus.bootstrap_client, [("path_naming_fn", None), ("connection_timeout", 30.0)]),
    (tensorbus.generate_semaphore_name, [("command_type", NO_DEFAULT), ("context_id", NO_DEFAULT)]),
]


@pytest.mark.parametrize(("function", "expected"), SIGNATURES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_parameters_are_the_originals(function: Any, expected: list[tuple[str, Any]]) -> None:
    parameters = [one for one in inspect.signature(function).parameters.values() if one.name != "self"]
    positional = [(one.name, one.default) for one in parameters if one.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert positional == expected


def test_bootstrap_and_blocking_false(agents: tensorbus.Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_RANK", "1")
    client, info = tensorbus.bootstrap_client(path_naming_fn=tensorbus.default_paths)
    assert (client.agent_rank, info.method) == (1, "direct")
    # A pair that nobody waits for is told of where tensors are registered.
    client.init_pair("later", "a", "b", 1, blocking=False, timeout=0.2)
    with pytest.raises(TimeoutError):
        client.register_tensors("later", [(torch.zeros(1), "later")], timeout=5.0)
    client.close()
