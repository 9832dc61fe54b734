"""Jobs of several processes, forked from the test: each rank runs a function."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

Job = Callable[[int, int], Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(job: Job, rank: int, size: int, port: int, answers: Any) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        # As bytes: a tensor in a queue would be shared memory of a process that has ended.
        saved = io.BytesIO()
        torch.save(job(rank, size), saved)
        answers.put((job.__name__, rank, None, saved.getvalue()))
    except BaseException:
        answers.put((job.__name__, rank, traceback.format_exc(), None))


def run_jobs(*jobs: tuple[Job, int], timeout: float = 120.0) -> dict[str, list[Any]]:
    """Runs jobs side by side, each with that many ranks: what each rank returned. An error of one is the test's."""
    import torch

    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = []
    for job, size in jobs:
        port = free_port()
        processes += [context.Process(target=_run, args=(job, rank, size, port, answers)) for rank in range(size)]
    results: dict[str, list[Any]] = {job.__name__: [None] * size for job, size in jobs}
    try:
        for process in processes:
            process.start()
        for _ in processes:
            name, rank, failure, result = answers.get(timeout=timeout)
            assert failure is None, f"{name}, rank {rank}: {failure}"
            results[name][rank] = torch.load(io.BytesIO(result))
        return results
    finally:
        for process in processes:
            process.kill()
            process.join()
