"""The places where the agent of a rank is found: the folders are those of ``docs/client-protocol.md``."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from urllib.parse import quote

from . import _wire

# How agents are started, wherever a message says so.
START_AGENTS = "tensorbus agents --side trainer=0..3 --side engine=4..5"


@dataclass(frozen=True)
class BusPaths:
    """The folders of a rank."""

    command_queue_path: str
    agent_state_path: str


def user_folder() -> str:
    """The place of a user's folders by default."""
    names = ("XDG_RUNTIME_DIR", "TMPDIR", "TMP", "TEMP")
    base = next((os.environ[name] for name in names if os.environ.get(name)), "/tmp")
    return os.path.join(base, f"tensorbus-{os.geteuid()}")


def namespace_folder() -> str:
    """The folder of the namespace, in which each rank has one."""
    namespace = os.environ.get("TENSOR_BUS_NAMESPACE") or "tensorbus"
    name = quote(namespace, safe="!'()*-._~")
    return os.path.join(user_folder(), re.sub(r"^\.+$", lambda dots: dots[0].replace(".", "%2E"), name))


def default_paths(agent_rank: int) -> BusPaths:
    """The folders of a rank, unless something else is said."""
    base = os.path.join(namespace_folder(), f"rank-{agent_rank}")
    return BusPaths(os.path.join(base, "queue"), os.path.join(base, "state"))


def socket_path(command_queue_path: str) -> str:
    """The agent's socket beside a command queue."""
    return os.environ.get("TENSOR_BUS_CLIENT_SOCKET") or os.path.join(command_queue_path, "client.sock")


def ranks_here() -> list[int]:
    """The ranks whose agents answer in this namespace, on this host."""
    found = []
    try:
        names = os.listdir(namespace_folder())
    except OSError:
        return []
    for name in names:
        match = re.fullmatch(r"rank-(\d+)", name)
        if match and answers(os.path.join(namespace_folder(), name, "queue", "client.sock")):
            found.append(int(match[1]))
    return sorted(found)


def answers(path: str) -> bool:
    """True if an agent listens on a socket."""
    try:
        made: socket.socket = _wire.connect(path, 1.0)
    except OSError:
        return False
    made.close()
    return True


def rank_list(ranks: list[int]) -> str:
    """``0-3, 6``."""
    parts: list[str] = []
    start = 0
    for at, rank in enumerate(ranks):
        if at + 1 < len(ranks) and ranks[at + 1] == rank + 1:
            continue
        parts.append(str(rank) if ranks[start] == rank else f"{ranks[start]}-{rank}")
        start = at + 1
    return ", ".join(parts)
