"""``python -m tensorbus doctor``: what this machine has for tensorbus, and what it lacks."""

from __future__ import annotations

import argparse
import sys

from . import _doctor


def main(argv: list[str] | None = None) -> int:
    """Runs a command; 0 if nothing is missing, 3 if something is."""
    parser = argparse.ArgumentParser(prog="python -m tensorbus", description="tensorbus for Python")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="says what this machine lacks, and how to get it")
    parser.parse_args(argv)
    return _doctor.report(sys.stdout.write)


if __name__ == "__main__":
    sys.exit(main())
