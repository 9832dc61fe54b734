"""What a machine has, and what it lacks: each check says what to do."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from . import _places, _wire
from ._agents import find_cli
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
        _numpy(),
        _shared_memory(),
        _command_line(),
        *_agents(),
    ]


def _system() -> Check:
    has = hasattr(os, "memfd_create")
    found = f"{platform.system()}, Python {platform.python_version()}"
    return Check("system", found, has, advice="clients run on Linux; elsewhere the package only imports")


def _torch() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check(
            "torch", "not installed", False, needed=False, advice="pip install torch, if your tensors are torch's"
        )
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    oldest = ".".join(str(part) for part in OLDEST_TORCH)
    return Check(
        "torch", torch.__version__, version >= OLDEST_TORCH, needed=False, advice=f"{oldest} or newer is tested"
    )


def _numpy() -> Check:
    if importlib.util.find_spec("numpy") is None:
        return _absent("numpy", "not installed", "pip install numpy: tensors in shared memory are made by it")
    import numpy

    return Check("numpy", numpy.__version__, True)


def _shared_memory() -> Check:
    try:
        from ._memory import SharedMemory

        SharedMemory(4096)
    except (OSError, AttributeError, ImportError, TensorBusError) as error:
        return Check("shared memory", str(error), False, advice="a kernel with sealed memfds, and room for them")
    return Check("shared memory", "a sealed memfd was made", True)


def _command_line() -> Check:
    try:
        command = find_cli()
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except TensorBusError as error:
        advice = "npm install -g tensorbus, or set TENSORBUS_CLI; agents may also run elsewhere"
        return _absent("command line", error.message, advice)
    except (OSError, subprocess.SubprocessError) as error:
        return _absent("command line", str(error), "Node.js 20.19 or newer, and the whole package")
    found = f"{done.stdout.strip()}: {' '.join(command)}"
    if done.stdout.strip() != __version__:
        return _absent("command line", found, f"this package is {__version__}: install the same release")
    return Check("command line", found, True)


def _agents() -> list[Check]:
    folder = _places.namespace_folder()
    ranks = _places.ranks_here()
    if not ranks:
        note = _why_none(folder)
        advice = f"{_places.START_AGENTS} (TENSOR_BUS_NAMESPACE keeps jobs apart)"
        return [_absent("agents", f"none in {folder}{note}", advice)]
    return [_agent(rank) for rank in ranks]


def _why_none(folder: str) -> str:
    if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        return ", which is not yours to read"
    return ""


def _agent(rank: int) -> Check:
    path = os.path.join(_places.default_paths(rank).command_queue_path, "client.sock")
    name = f"agent {rank}"
    try:
        link = Link(path, _wire.connect(path, 2.0), 2.0)
    except (OSError, TensorBusError) as error:
        return Check(name, str(error), False, advice="look at its log")
    link.close()
    version = str(link.welcome["agent"])
    sides = [side for side, ranks in (link.welcome.get("sides") or {}).items() if rank in ranks]
    found = f"process {link.welcome['pid']}, version {version}{', side ' + sides[0] if sides else ''}"
    return Check(
        name, found, version == __version__, needed=False, advice=f"this package is {__version__}: install the same"
    )


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
