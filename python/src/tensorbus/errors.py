"""What goes wrong, as exceptions: each has a stable ``code``, ``details``, and notes that say what to do.

The codes are those of the agents; ``docs/errors.md`` explains each. An exception is also of the built-in class that a
Python program expects: ``ValueError`` for input that no agent would take, ``ConnectionError`` for an agent that is not
there, ``TimeoutError`` for a deadline, ``RuntimeError`` for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "TensorBusError",
    "ArgumentError",
    "AgentError",
    "DeadlineError",
    "OperationError",
    "QueueFullError",
]


class TensorBusError(Exception):
    """The base of all exceptions of tensorbus.

    Attributes:
        code: The stable code, for example ``"TB_TIMEOUT"``.
        details: The values that the message speaks of: the rank, the pair, the tensor.
    """

    def __init__(self, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        for note in _advice.get(code, ()):
            add_note(self, note)

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.code, self.message, self.details))


class ArgumentError(TensorBusError, ValueError):
    """What was asked cannot be done: a layout, a shape, a name or an option is wrong."""


class AgentError(TensorBusError, ConnectionError):
    """There is no agent to talk to, or none any more."""


class DeadlineError(TensorBusError, TimeoutError):
    """A deadline passed."""


class OperationError(TensorBusError, RuntimeError):
    """What was asked was under way, and failed."""


class QueueFullError(OperationError):
    """The agent has as many commands of this client as it takes."""


def add_note(error: BaseException, note: str) -> None:
    """``BaseException.add_note`` of Python 3.11, for 3.10 too."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        notes = getattr(error, "__notes__", None)
        error.__notes__ = [*(notes or []), note]  # type: ignore[attr-defined]


_classes: dict[str, type[TensorBusError]] = {
    "TB_TIMEOUT": DeadlineError,
    "TB_AGENT_LOST": AgentError,
    "TB_AGENT_UNRESPONSIVE": AgentError,
    "TB_AGENT_RANK": AgentError,
    "TB_CONNECT": AgentError,
    "TB_VERSION": AgentError,
    "TB_FOREIGN": AgentError,
    "TB_QUEUE_FULL": QueueFullError,
    "TB_PLAN_INPUT": ArgumentError,
    "TB_MESH": ArgumentError,
    "TB_PLACEMENT": ArgumentError,
    "TB_PARTIAL_OP": ArgumentError,
    "TB_PARTIAL_TARGET": ArgumentError,
    "TB_STRIDED_SHARD": ArgumentError,
    "TB_SHAPE": ArgumentError,
    "TB_DTYPE": ArgumentError,
    "TB_STRIDES": ArgumentError,
    "TB_ALIAS": ArgumentError,
    "TB_REGION": ArgumentError,
    "TB_UNSUPPORTED": ArgumentError,
    "TB_TENSOR_MISSING": ArgumentError,
    "TB_COMMAND": ArgumentError,
    "TB_EXISTS": ArgumentError,
    "TB_PAIR_UNKNOWN": ArgumentError,
    "TB_PAIR_MISMATCH": ArgumentError,
    "TB_BATCH_UNKNOWN": ArgumentError,
    "TB_BATCH_MISMATCH": ArgumentError,
    "TB_BUCKET_SIZE": ArgumentError,
}

_advice: dict[str, tuple[str, ...]] = {
    "TB_AGENT_UNRESPONSIVE": (
        "The agent's process is stopped (a debugger, SIGSTOP, a frozen container): look at it with ps.",
    ),
    "TB_VERSION": ("Install the same release of tensorbus on both sides: `python -m tensorbus doctor` shows both.",),
    "TB_BUSY": ("Wait for the round under way before the next one: `transfer(...).acquire()`.",),
    "TB_BATCH_UNKNOWN": ("Register the tensors again: the batch ended, with its agent, a peer or the store.",),
    "TB_PAIR_UNKNOWN": ("Call init_pair for this pair on this client first.",),
    "TB_NO_SPACE": ("Shared memory is full: raise the size of /dev/shm, or the memory limit of the container.",),
    "TB_FOREIGN": ("Run client and agent as the same user, or start the agent with --client-uid.",),
    "TB_STORE_LOST": ("The agents have lost their store: once it is back, register again.",),
}


def make_error(code: str, message: str, details: Mapping[str, Any] | None = None) -> TensorBusError:
    """The exception of a code, of its own class."""
    return _classes.get(code, OperationError)(code, message, details)
