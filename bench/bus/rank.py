"""A client in Python of the bus's benchmark: the same commands and answers as rank.ts has, over Node.js's channel."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

options = json.loads(sys.argv[1])
sys.path.insert(0, options["package"])

import tensorbus  # noqa: E402

RANK: int = options["rank"]
SIDES = ("source", "target")
client = tensorbus.TensorBusClient(RANK, options["commandQueuePath"], options["agentStatePath"])
tensors: list[Any] = []
handlers: dict[str, tensorbus.BatchHandler] = {}


def timed(run: Callable[[], object]) -> dict[str, str]:
    started = time.monotonic_ns()
    run()
    return {"startedNs": str(started), "endedNs": str(time.monotonic_ns())}


def register(command: dict[str, Any]) -> dict[str, str]:
    tensors[:] = [tensorbus.empty((command["rows"], command["columns"]), "float32") for _ in range(command["tensors"])]
    for tensor in tensors:
        tensor.fill(-1)

    def run() -> None:
        pairs = [(tensor, "python") for tensor in tensors]
        handlers["last"] = client.register_tensors(f"python {command['batch']}", pairs, timeout=60)

    return timed(run)


def query(command: dict[str, Any]) -> list[float]:
    times = []
    end = time.monotonic() + command["seconds"]
    while time.monotonic() < end:
        if command["pauseMs"] > 0:
            time.sleep(command["pauseMs"] / 1000)
        started = time.perf_counter_ns()
        client.query_transfer_signal("python bench")
        times.append((time.perf_counter_ns() - started) / 1000)
    return times


def run_round(command: dict[str, Any]) -> dict[str, str]:
    fill = command["fill"]
    if RANK == 0:
        for tensor in tensors:
            tensor.fill(fill)
    times = timed(lambda: handlers["last"].transfer("send" if RANK == 0 else "recv", blocking=True))
    if RANK == 1 and not all(tensor.flat[0] == fill and tensor.flat[-1] == fill for tensor in tensors):
        raise SystemExit(f"{tensors[0].flat[0]} came, not {fill}")
    return times


answers = {"query": query, "register": register, "round": run_round}
mesh = tensorbus.Mesh((1,))
os.environ["RANK"] = "0"
client.init_pair("python", SIDES[RANK], SIDES[1 - RANK], 1, mesh, ["S(0)"])
channel = socket.socket(fileno=int(os.environ["NODE_CHANNEL_FD"]))
channel.setblocking(True)
channel.sendall(b'"ready"\n')
for line in channel.makefile("rb"):
    command = json.loads(line)
    # Node.js tells of its own under names of its own.
    if command.get("kind") in answers:
        channel.sendall(json.dumps(answers[command["kind"]](command)).encode() + b"\n")
