"""A client from what the launcher of a job says in the environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ._layouts import own_rank
from ._places import BusPaths, default_paths
from .client import TensorBusClient
from .errors import make_error


@dataclass(frozen=True)
class BootstrapInfo:
    """How the agent of a client was found.

    Attributes:
        agent_rank: The rank of its agent.
        method: ``"direct"``: ``AGENT_RANK`` names it; ``"offset"``: it is ``RANK`` + ``AGENT_RANK_OFFSET``.
        command_queue_path: The folder of the agent's queue.
        agent_state_path: The folder of the agent's state.
        rank: The rank in the job, if the agent's follows from it.
        agent_rank_offset: What was added to it.
    """

    agent_rank: int
    method: str
    command_queue_path: str
    agent_state_path: str
    rank: int | None = None
    agent_rank_offset: int | None = None


class Bootstrapped(NamedTuple):
    """A client, and how its agent was found."""

    client: TensorBusClient
    info: BootstrapInfo


def _integer(name: str) -> int | None:
    text = os.environ.get(name, "")
    if not text:
        return None
    if not text.isdigit():
        raise make_error("TB_ENVIRONMENT", f"{name} must be a number from 0 on, not {text!r}", {"name": name})
    return int(text)


def _paths(agent_rank: int, path_naming_fn: Callable[[int], BusPaths | tuple[str, str]] | None) -> BusPaths:
    if path_naming_fn is not None:
        given = path_naming_fn(agent_rank)
        return given if isinstance(given, BusPaths) else BusPaths(*given)
    queue, state = os.environ.get("TENSOR_BUS_COMMAND_QUEUE_PATH"), os.environ.get("TENSOR_BUS_STATE_PATH")
    if queue and state:
        return BusPaths(queue, state)
    if queue or state:
        raise make_error(
            "TB_ENVIRONMENT", "TENSOR_BUS_COMMAND_QUEUE_PATH and TENSOR_BUS_STATE_PATH are set both or not at all"
        )
    return default_paths(agent_rank)


def resolve(
    path_naming_fn: Callable[[int], BusPaths | tuple[str, str]] | None = None, rank: int | None = None
) -> BootstrapInfo:
    """Which agent is this process's, without connecting to it. ``rank``: in its job; default: as the launcher says."""
    direct = _integer("AGENT_RANK")
    if direct is not None:
        paths = _paths(direct, path_naming_fn)
        return BootstrapInfo(direct, "direct", paths.command_queue_path, paths.agent_state_path)
    rank = own_rank() if rank is None else rank
    if rank is None:
        raise make_error(
            "TB_ENVIRONMENT", "AGENT_RANK is not set, nor RANK, to which AGENT_RANK_OFFSET would be added (default 0)"
        )
    offset = _integer("AGENT_RANK_OFFSET") or 0
    paths = _paths(rank + offset, path_naming_fn)
    return BootstrapInfo(rank + offset, "offset", paths.command_queue_path, paths.agent_state_path, rank, offset)


def bootstrap_client(
    path_naming_fn: Callable[[int], BusPaths | tuple[str, str]] | None = None,
    connection_timeout: float = 30.0,
) -> Bootstrapped:
    """Connects to this process's agent: rank ``AGENT_RANK``, else ``RANK`` + ``AGENT_RANK_OFFSET`` (default 0).

    Args:
        path_naming_fn: The folders of a rank; default: those that the environment names, else the default ones.
        connection_timeout: Seconds.

    Raises:
        ValueError: Neither is set, or one is no rank.
        ConnectionError: No agent answers.
    """
    info = resolve(path_naming_fn)
    client = TensorBusClient(info.agent_rank, info.command_queue_path, info.agent_state_path, connection_timeout)
    return Bootstrapped(client, info)
