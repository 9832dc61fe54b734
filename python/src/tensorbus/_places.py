"""The places where the agent of a rank is found: the folders are those of ``docs/client-protocol.md``."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from urllib.parse import quote, unquote

from . import _wire

_SOCKET = "client.sock"
# At most as many other folders are told of.
_MAX_ELSEWHERE = 4
# Seconds in which they are looked for: an agent that is stopped takes no connection.
_LOOK_ELSEWHERE = 2.0


@dataclass(frozen=True)
class BusPaths:
    """The folders of a rank."""

    command_queue_path: str
    agent_state_path: str


_BASES = ("XDG_RUNTIME_DIR", "TMPDIR", "TMP", "TEMP")


def user_folder() -> str:
    """The place of a user's folders by default."""
    base = next((os.environ[name] for name in _BASES if os.environ.get(name)), "/tmp")
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
    return os.environ.get("TENSOR_BUS_CLIENT_SOCKET") or os.path.join(command_queue_path, _SOCKET)


def named_socket() -> str | None:
    """The socket that the environment names, if it names one."""
    queue = os.environ.get("TENSOR_BUS_COMMAND_QUEUE_PATH")
    return socket_path(queue or "") if queue or os.environ.get("TENSOR_BUS_CLIENT_SOCKET") else None


def ranks_here() -> list[int]:
    """The ranks whose agents answer in this namespace, on this host."""
    folder = namespace_folder()
    return [rank for rank in ranks_in(folder) if answers(socket_in(folder, rank))]


def ranks_in(folder: str) -> list[int]:
    """The ranks that have a socket in the folder of a namespace: agents that run, or that have ended."""
    matches = [re.fullmatch(r"rank-(\d+)", name) for name in _names_in(folder)]
    ranks = sorted(int(match[1]) for match in matches if match)
    return [rank for rank in ranks if os.path.exists(socket_in(folder, rank))]


def socket_in(folder: str, rank: int) -> str:
    """The socket of a rank's agent in the folder of a namespace."""
    return os.path.join(folder, f"rank-{rank}", "queue", _SOCKET)


def _names_in(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def agents_elsewhere() -> list[tuple[str, str]]:
    """For those who find no agent: which others this host has, each with what to do so that it is found."""
    return list(islice(_elsewhere(time.monotonic() + _LOOK_ELSEWHERE), _MAX_ELSEWHERE))


def _elsewhere(deadline: float) -> Iterator[tuple[str, str]]:
    own = user_folder()
    bases = [os.path.dirname(own), *(os.environ[name] for name in _BASES if os.environ.get(name))]
    for base in dict.fromkeys([*bases, f"/run/user/{os.geteuid()}", "/tmp"]):
        for name in _names_in(base):
            user, folder = re.fullmatch(r"tensorbus-(\d+)", name), os.path.join(base, name)
            # Anybody may make a folder with another's number in /tmp.
            if user is None or not _belongs(folder, int(user[1])):
                continue
            if int(user[1]) == os.geteuid():
                yield from _of_user(folder, deadline)
            else:
                yield _of_other_user(folder, int(user[1]))


def _belongs(folder: str, uid: int) -> bool:
    try:
        return os.lstat(folder).st_uid == uid
    except OSError:
        return False


def _of_user(user: str, deadline: float) -> Iterator[tuple[str, str]]:
    for folder in [os.path.join(user, name) for name in _names_in(user)]:
        if folder == namespace_folder():
            continue
        ranks = [rank for rank in ranks_in(folder) if _answers_until(deadline, socket_in(folder, rank))]
        if ranks:
            set_names = [f"TENSOR_BUS_NAMESPACE={unquote(os.path.basename(folder))}"]
            if user != user_folder():
                set_names.insert(0, f"XDG_RUNTIME_DIR={os.path.dirname(user)}")
            yield f"those of ranks {rank_list(ranks)} answer in {folder}", f"set {' and '.join(set_names)}"


def _of_other_user(folder: str, uid: int) -> tuple[str, str]:
    advice = (
        f"run as that user, or have its agents started with --client-uid {os.geteuid()} and --client-socket PATH, "
        "and set TENSOR_BUS_CLIENT_SOCKET=PATH"
    )
    return f"{folder} is that of user {uid}", advice


def _answers_until(deadline: float, path: str) -> bool:
    left = deadline - time.monotonic()
    return left > 0 and answers(path, min(1.0, left))


def answers(path: str, timeout: float = 1.0) -> bool:
    """True if an agent listens on a socket."""
    try:
        made: socket.socket = _wire.connect(path, timeout)
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
