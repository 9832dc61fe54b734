"""What a machine has, and what it lacks: each check says what to do."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from . import _places, _wire
from ._agents import find_cli, start_command
from ._link import Link
from ._version import __version__
from .errors import TensorBusError

OLDEST_TORCH = (2, 13)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ``needed``: without it, nothing works."""

    name: str
    found: str
    ok: bool
    needed: bool = True
    advice: str = ""


def _absent(name: str, found: str, advice: str) -> Check:
    return Check(name, found, False, needed=False, advice=advice)


def checks() -> list[Check]:
    """Everything that is looked at, in the order in which it is shown."""
    return [
        _system(),
        Check("tensorbus", __version__, True),
        _torch(),
        _library("numpy", "pip install numpy: tensors in shared memory are made by it"),
        _shared_memory(),
        *_command_line(),
        *_agents(),
    ]


def _system() -> Check:
    has = hasattr(os, "memfd_create")
    found = f"{platform.system()}, Python {platform.python_version()}"
    return Check("system", found, has, advice="clients run on Linux; elsewhere the package only imports")


def _torch() -> Check:
    check = _library("torch", "pip install torch, if your tensors are torch's")
    if not check.ok:
        return check
    version = tuple(int(part) for part in check.found.split("+")[0].split(".")[:2])
    if version >= OLDEST_TORCH:
        return check
    oldest = ".".join(str(part) for part in OLDEST_TORCH)
    return _absent("torch", check.found, f"{oldest} or newer is tested: pip install --upgrade torch")


def _library(name: str, advice: str) -> Check:
    if importlib.util.find_spec(name) is None:
        return _absent(name, "not installed", advice)
    try:
        return Check(name, str(importlib.import_module(name).__version__), True)
    except Exception as error:
        # A library of its own that is missing, or built for another: whatever it raises, the rest is to be looked at.
        return _absent(name, f"does not import: {_one_line(str(error))}", f"pip install --force-reinstall {name}")


def _shared_memory() -> Check:
    try:
        from ._memory import SharedMemory

        SharedMemory(4096)
    except (OSError, AttributeError, ImportError, TensorBusError) as error:
        return Check("shared memory", str(error), False, advice="a kernel with sealed memfds, and room for them")
    return Check("shared memory", "a sealed memfd was made", True)


def _command_line() -> list[Check]:
    try:
        command = find_cli()
    except TensorBusError as error:
        return [_absent("command line", error.message, f"{_advice(error)} Agents may also run elsewhere.")]
    version, failure = _output([*command, "--version"])
    if failure:
        advice = "Node.js 20.19, or 22.3 or newer, and the whole package (in a clone: npm ci)"
        return [_absent("command line", failure, advice)]
    found = f"{version}: {' '.join(command)}"
    if version != __version__:
        advice = f"this package is {__version__}: install the same release of both"
        return [_absent("command line", found, advice)]
    return [Check("command line", found, True), *_agents_could_run(command)]


def _agents_could_run(command: list[str]) -> list[Check]:
    """What the command line finds missing of what its agents need, such as the native library."""
    told, failure = _output([*command, "doctor", "--json"])
    try:
        found = json.loads(told)["checks"]
    except (ValueError, KeyError, TypeError):
        return [_absent("agents' needs", failure or _one_line(told), f"{' '.join(command)} doctor")]
    return [
        _absent(check["name"], _one_line(check["found"]), f"agents do not run: {check.get('advice', '')}")
        for check in found
        if check["status"] == "missing" and check["needed"] in ("planning", "transfers")
    ]


def _output(words: list[str]) -> tuple[str, str]:
    """What a program prints, and what went wrong: an exit code, and the line that says why."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return "", str(error)
    if done.returncode == 0:
        return done.stdout.strip(), ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    says = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "and says nothing")
    return done.stdout.strip(), f"{' '.join(words)} ends with exit code {done.returncode}: {says}"


def _advice(error: TensorBusError) -> str:
    """The last note is the one for this very case."""
    notes: list[str] = getattr(error, "__notes__", [])
    return notes[-1] if notes else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _agents() -> list[Check]:
    named = _places.named_socket()
    if named is not None:
        return [_agent("agent", named)]
    folder = _places.namespace_folder()
    ranks = _places.ranks_here()
    return [_agent(f"agent {rank}", _places.socket_in(folder, rank)) for rank in ranks] or _no_agents(folder)


def _no_agents(folder: str) -> list[Check]:
    note = ""
    if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        note = ", which is not yours to read"
    elif ended := _places.ranks_in(folder):
        note = f", in which agents of ranks {_places.rank_list(ended)} have ended"
    none = _absent("agents", f"none in {folder}{note}", f"{start_command()}; TENSOR_BUS_NAMESPACE keeps jobs apart")
    return [none, *(_absent("others", found, advice) for found, advice in _places.agents_elsewhere())]


def _agent(name: str, path: str) -> Check:
    try:
        link = Link(path, _wire.connect(path, 2.0), 2.0)
    except TensorBusError as error:
        return Check(name, str(error), False, advice=_advice(error))
    except PermissionError:
        advice = f"run as its user, or have the agent started with --client-uid {os.geteuid()}"
        return Check(name, f"{path} is another user's", False, advice=advice)
    except OSError as error:
        return Check(name, f"no agent answers at {path}: {error.strerror}", False, advice=start_command())
    link.close()
    version, rank = str(link.welcome["agent"]), link.welcome["rank"]
    sides = [side for side, ranks in (link.welcome.get("sides") or {}).items() if rank in ranks]
    found = f"process {link.welcome['pid']}, version {version}{', side ' + sides[0] if sides else ''}"
    if version == __version__:
        return Check(name, found, True)
    return _absent(name, found, f"this package is {__version__}: install the same release of both")


def report(write: Callable[[str], object]) -> int:
    """Writes all checks; 3 if something that is needed is missing, else 0."""
    found = checks()
    width = max(len(check.name) for check in found)
    missing = 0
    for check in found:
        state = "ok     " if check.ok else "MISSING" if check.needed else "absent "
        write(f"{state} {check.name:<{width}}  {check.found}\n")
        if not check.ok and check.advice:
            write(f"        {'':<{width}}  -> {check.advice}\n")
        missing += not check.ok and check.needed
    return 3 if missing else 0
