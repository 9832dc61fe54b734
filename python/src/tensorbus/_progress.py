"""A line on a terminal that says how far a round is."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from .errors import TensorBusError

# Seconds before it is worth a line, and between two looks.
_FIRST = 0.5
_EACH = 0.2


def is_shown() -> bool:
    """True on a terminal, unless ``TENSORBUS_PROGRESS=0`` says otherwise."""
    if os.environ.get("TENSORBUS_PROGRESS", "1") == "0" or sys.stderr is None:
        return False
    try:
        return sys.stderr.isatty()
    except ValueError:
        # A daemon may have closed it.
        return False


def line_of(what: str, progress: Mapping[str, Any], seconds: float) -> str:
    """``policy: sending, round 3: 1.2 of 4.0 GiB, 30 %, 2.1 s``."""
    done, total = int(progress["bytesDone"]), int(progress["bytesTotal"])
    unit, name = next(
        ((size, name) for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if total >= size), (1, "bytes")
    )
    share = f", {100 * done // total} %" if total else ""
    moved = f"{done / unit:.1f} of {total / unit:.1f} {name}"
    return f"{what}, round {progress['round']}: {moved}{share}, {seconds:.1f} s"


class ProgressLine:
    """While it is entered, a thread asks how far the round is, and writes it over the last line. No line is left."""

    def __init__(self, what: str, ask: Callable[[], Mapping[str, Any] | None]) -> None:
        self._what = what
        self._ask = ask
        self._ended = threading.Event()
        self._width = 0
        self._began = 0.0
        self._thread = threading.Thread(target=self._follow, daemon=True, name="tensorbus-progress")

    def __enter__(self) -> ProgressLine:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        # An agent that does not answer holds nobody up.
        self._thread.join(0.1)
        if self._width:
            self._write("")

    def _follow(self) -> None:
        wait = _FIRST
        while not self._ended.wait(wait):
            wait = _EACH
            try:
                progress = self._ask()
            except TensorBusError:
                # The round says itself what is wrong.
                return
            if progress is not None and not self._ended.is_set():
                self._write(line_of(self._what, progress, time.monotonic() - self._began))

    def _write(self, text: str) -> None:
        sys.stderr.write("\r" + text.ljust(self._width) + ("" if text else "\r"))
        sys.stderr.flush()
        self._width = len(text)
