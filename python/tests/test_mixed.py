"""Both kinds of clients in one cluster: a side of Python and one of Node.js, either way round."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from test_client import both

import tensorbus
from conftest import client_of

HERE = pathlib.Path(__file__).resolve().parent


def node_side(name: str, rank: int, role: str) -> dict[str, object]:
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, str(HERE / "node_side.mjs")],
        env={**os.environ, "ROLE": role, "NAME": name, "AGENT_RANK": str(rank)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("python", ["source", "target"])
def test_python_and_node(agents: tensorbus.Agents, python: str) -> None:
    tensor: Any = np.arange(6, dtype=np.float32).reshape(2, 3) * (python == "source")

    def python_side() -> int:
        weights = tensorbus.Weights(
            f"mixed-{python}", {"weight": tensor}, role=python, client=client_of(0), rank=0, world_size=1, timeout=30
        )
        number: Any = weights.recv(timeout=30) if python == "target" else weights.send(timeout=30).result()["round"]
        weights.client.close()
        return int(number)

    number, node = both(python_side, lambda: node_side(f"mixed-{python}", 2, "recv" if python == "source" else "send"))
    expected = [0, 1, 2, 3, 4, 5] if python == "source" else [1, 2, 3, 4, 5, 6]
    assert node == {"round": number, "data": expected}
    assert tensor.ravel().tolist() == expected
