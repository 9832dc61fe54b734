"""Real agents for the tests: the command line of this repository, in a namespace of the test run."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Iterator

import pytest

import tensorbus

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    os.environ.setdefault("TENSORBUS_CLI", str(ROOT / "dist" / "cli.js"))
    for name in ("RANK", "WORLD_SIZE", "AGENT_RANK", "AGENT_RANK_OFFSET", "TENSOR_BUS_COMMAND_QUEUE_PATH"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory(prefix="tensorbus-python-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        yield


@pytest.fixture(scope="session")
def agents(_environment: None) -> Iterator[tensorbus.Agents]:
    """Four agents, for tests that leave them as they were."""
    with tensorbus.start_agents(
        4, sides={"trainer": [0, 1], "engine": [2, 3]}, flags=["--log", "error", "--drain", "1"]
    ) as started:
        yield started


def client_of(rank: int, timeout: float = 10.0) -> tensorbus.TensorBusClient:
    paths = tensorbus.default_paths(rank)
    return tensorbus.TensorBusClient(rank, paths.command_queue_path, paths.agent_state_path, timeout)
