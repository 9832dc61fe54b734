"""One command: agents, an FSDP2 trainer of four processes and a tensor-parallel engine of two, on this machine.

    python examples/pytorch/run.py

After every optimizer step the engine has the new weights, and checks every bit of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import tempfile

import torch

import engine
import tensorbus
import trainer

TRAINERS, ENGINES = 4, 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(job, rank: int, world_size: int, port: int, namespace: str, *arguments) -> None:  # type: ignore[no-untyped-def]
    # One thread a process: sums are the same whoever computes them.
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TENSOR_BUS_NAMESPACE=namespace,
    )
    job(*arguments)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=10)
    steps = options.parse_args().steps
    namespace = f"pytorch-example-{os.getpid()}"
    # Forked after one import of torch, which takes longer than everything else here.
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for job, world_size in ((trainer.train, TRAINERS), (engine.serve, ENGINES)):
            port = free_port()
            processes += [
                context.Process(target=start, args=(job, rank, world_size, port, namespace, steps, folder))
                for rank in range(world_size)
            ]
        for process in processes:
            process.start()
        sides = {"trainer": range(TRAINERS), "engine": range(TRAINERS, TRAINERS + ENGINES)}
        try:
            with tensorbus.start_agents(sides=sides, namespace=namespace, flags=["--log", "error"]):
                codes = wait_for(processes)
        finally:
            for process in processes:
                process.kill()
    if any(codes):
        print(f"failed: exit codes {codes}", file=sys.stderr)
        return 1
    print(f"{steps} steps of a trainer of {TRAINERS} processes in an engine of {ENGINES}: every bit as it should be")
    return 0


def wait_for(processes: list[multiprocessing.process.BaseProcess]) -> list[int | None]:
    """The exit codes; one that fails ends the others."""
    while running := [process for process in processes if process.exitcode is None]:
        multiprocessing.connection.wait([process.sentinel for process in running])
        if any(process.exitcode for process in processes):
            for process in processes:
                process.terminate()
                process.join()
    return [process.exitcode for process in processes]


if __name__ == "__main__":
    sys.exit(main())
