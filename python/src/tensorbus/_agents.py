"""Agents of this host, started from Python: for notebooks, tests and examples."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence

from .errors import TensorBusError, add_note, make_error


def find_cli() -> list[str]:
    """The command line of tensorbus: ``TENSORBUS_CLI`` (a program, or a script of Node.js), else that of the extra
    ``tensorbus[agent]``, else ``tensorbus`` on PATH.

    Raises:
        TensorBusError: ``TB_LIBRARY``: there is none. Nothing is ever downloaded.
    """
    named = os.environ.get("TENSORBUS_CLI")
    if not named and importlib.util.find_spec("tensorbus_agent") is not None:
        return _cli_of_extra()
    path = named or shutil.which("tensorbus")
    if path and (os.path.exists(path) or shutil.which(path)):
        if not path.endswith((".js", ".mjs", ".cjs")):
            return [path]
        node = shutil.which("node")
        if node is not None:
            return [node, path]
        error = make_error("TB_LIBRARY", f"{path} needs Node.js, and there is no node on PATH")
        add_note(error, "Install Node.js 20.19, or 22.3 or newer (https://nodejs.org), and put it on PATH.")
        raise error
    if named:
        error = make_error("TB_LIBRARY", f"TENSORBUS_CLI names {named}, which is not there")
        add_note(error, "Run `npm ci` in the clone whose dist/cli.js that is, or name another, or unset it.")
        raise error
    error = make_error("TB_LIBRARY", "there is no tensorbus on PATH")
    add_note(
        error,
        "Install the agents with `pip install tensorbus[agent]` or `npm install -g tensorbus`, or set TENSORBUS_CLI to "
        "dist/cli.js of a clone.",
    )
    raise error


def _cli_of_extra() -> list[str]:
    from tensorbus_agent import command

    try:
        return list(command())
    except FileNotFoundError as missing:
        raise make_error("TB_LIBRARY", str(missing)) from missing


def start_command() -> str:
    """How agents are started, wherever a message says so; and what the command is here, if it is not on PATH."""
    said = "tensorbus agents --side trainer=0..3 --side engine=4..5"
    try:
        words = find_cli()
    except TensorBusError:
        return said
    return said if words == [shutil.which("tensorbus")] else f"{said} (here, tensorbus is {shlex.join(words)})"


class Agents:
    """Agents that run as long as this object is open, and end with this process at the latest.

    Attributes:
        ranks: Their ranks.
        store: The URL of the store that they share.
        namespace: The namespace that keeps them apart from others on this host.
    """

    def __init__(self, process: subprocess.Popen[str], ranks: list[int], namespace: str | None, timeout: float) -> None:
        self._process = process
        self._log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.ranks = ranks
        self.namespace = namespace
        self._readers = [
            threading.Thread(target=self._follow, args=(stream,), daemon=True)
            for stream in (process.stdout, process.stderr)
        ]
        for reader in self._readers:
            reader.start()
        try:
            self.store = self._await_ready(timeout)
        except BaseException:
            self.close(timeout=0)
            raise

    def _follow(self, stream: Iterable[str]) -> None:
        with contextlib.suppress(ValueError):
            for line in stream:
                self._log.append(line.rstrip())
                del self._log[:-1000]
                if line.startswith("ready: agents"):
                    self._lines.put(line)
        self._lines.put(None)

    def _await_ready(self, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise self._failed("TB_TIMEOUT", f"the agents were not ready within {timeout} s") from None
            if line is None:
                self._process.wait()
                raise self._failed("TB_AGENT_LOST", f"the agents ended with exit code {self._process.returncode}")
            match = re.search(r"store (\S+)", line)
            if match:
                return match[1]

    def _failed(self, code: str, message: str) -> Exception:
        error = make_error(code, message)
        for line in self._log[-20:]:
            add_note(error, line)
        return error

    @property
    def log(self) -> list[str]:
        """The last lines of their logs, each with its rank before it."""
        return list(self._log)

    @property
    def pid(self) -> int:
        """The process that runs them."""
        return self._process.pid

    def close(self, timeout: float = 15.0) -> None:
        """Drains them: rounds under way end, or are cancelled. A second call does nothing."""
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdin is not None:
            process.stdin.close()
        for reader in self._readers:
            reader.join(1.0)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Agents:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_agents(
    ranks: int | Sequence[int] | None = None,
    *,
    sides: Mapping[str, Sequence[int]] | None = None,
    store: str | None = None,
    namespace: str | None = None,
    flags: Sequence[str] = (),
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
) -> Agents:
    """Starts agents on this host, and waits until they take commands.

    Args:
        ranks: How many, or which; default: those of all sides.
        sides: The ranks of each side, so that ``Weights(me=...)`` finds its agent by RANK.
        store: What all agents of all hosts share; default: one of their own, on loopback.
        namespace: Keeps them apart from others on this host; default ``TENSOR_BUS_NAMESPACE``.
        flags: More flags for each agent: ``tensorbus agent --help``.
        timeout: Seconds.
        env: Variables besides those of this process.

    Raises:
        TensorBusError: There is no command line, or an agent did not start; the notes are the last lines of the logs.
    """
    command = [*find_cli(), "agents", "--until-stdin-ends"]
    for name, members in (sides or {}).items():
        command += ["--side", f"{name}={','.join(str(rank) for rank in members)}"]
    chosen = list(range(ranks)) if isinstance(ranks, int) else list(ranks or [])
    if chosen:
        command += ["--ranks", ",".join(str(rank) for rank in chosen)]
    else:
        chosen = sorted({rank for members in (sides or {}).values() for rank in members})
    if store is not None:
        command += ["--store", store]
    if namespace is not None:
        command += ["--namespace", namespace]
    command += ["--", *flags]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    return Agents(process, chosen, namespace, timeout)
