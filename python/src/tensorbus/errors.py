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
        add_note(self, _advice.get(code) or f"docs/errors.md explains {code}, and says what to do.")

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
    "TB_ENVIRONMENT": ArgumentError,
    "TB_PLAN_TOO_LARGE": ArgumentError,
    "TB_TOPOLOGY": ArgumentError,
    "TB_SEAL": ArgumentError,
    "TB_MODEL_CONFIG": ArgumentError,
    "TB_PARTS": ArgumentError,
    "TB_PRESET": ArgumentError,
    "TB_FILE": ArgumentError,
}

# What to do, a sentence for each code that a client meets; others are explained by the page.
_advice: dict[str, str] = {
    "TB_PLAN_INPUT": "Correct the field that details names.",
    "TB_MESH": "A mesh has ranks of this job, each once, and this rank among them: compare it with WORLD_SIZE.",
    "TB_PLACEMENT": "Give one placement for each dimension of the mesh, within the tensor's dimensions.",
    "TB_PARTIAL_OP": "Reduce before the transfer, or name one of sum, avg, product, max and min.",
    "TB_PARTIAL_TARGET": "Receive into Replicate or Shard: a Partial can only be sent.",
    "TB_STRIDED_SHARD": 'Name how it reads: strided_shard="order" for what fully_shard made, else "split".',
    "TB_SHAPE": "Compare both sides. Shapes are fixed at registering: register changed ones again (Weights.refresh).",
    "TB_DTYPE": "Cast the tensor first (.to), or leave it out by rename.",
    "TB_STRIDES": "Make a contiguous copy of it.",
    "TB_ALIAS": "Give each tensor that is received its own memory.",
    "TB_REGION": "Give it memory, and register again after memory has changed (Weights.refresh on all ranks).",
    "TB_UNSUPPORTED": "Nothing is emulated: the message says what is asked for and cannot be had.",
    "TB_TENSOR_MISSING": "Register the model again (Weights.refresh on all ranks) if its tensors are others now.",
    "TB_NO_SPACE": "Shared memory is full: raise the size of /dev/shm, or the memory limit of the container.",
    "TB_NO_MEMORY": "Lower bucket_size, or give the machine more memory.",
    "TB_QUARANTINED": "End that rank's agent: something does not let go of its memory. Find out what it is.",
    "TB_TIMEOUT": "Look at the rank that did not come first; raise timeout only if it was working.",
    "TB_CANCELLED": 'Another rank failed first: details["rank"] is where it began, and its log says why.',
    "TB_PEER_LOST": 'details["rank"] closed or ended: once it is back, register again (Weights.refresh on all ranks).',
    "TB_VERSION": "Install the same release of tensorbus on both sides: `python -m tensorbus doctor` shows both.",
    "TB_CHECKSUM": "Bytes changed on their way: suspect the network or the ranks' memory. Transfer or register again.",
    "TB_CONNECT": "Check the address that the agents advertise, and the firewall between the hosts.",
    "TB_CLOSED": "It was closed, or belongs to another process: make a new one.",
    "TB_PLAN_MISMATCH": "Run the same release of tensorbus everywhere, and register the same layouts.",
    "TB_BUSY": "Wait for the round under way before the next one: `transfer(...).acquire()`.",
    "TB_INVALIDATED": "Register the tensors again (Weights.refresh on all ranks).",
    "TB_CUDA": "Look at dmesg for an Xid of the GPU, and for who freed memory that is registered.",
    "TB_DEVICE": "Let client and agent see the same GPU: compare CUDA_VISIBLE_DEVICES with `nvidia-smi -L`.",
    "TB_LIBRARY": "`python -m tensorbus doctor` says what is missing, and how to get it.",
    "TB_ENVIRONMENT": "torchrun sets RANK and WORLD_SIZE; without it set them, or give rank= and world_size=.",
    "TB_STORE_LOST": "The agents have lost their store: once it is back, register again.",
    "TB_AGENT_LOST": "See that the agent runs (`python -m tensorbus doctor`), then register again.",
    "TB_AGENT_UNRESPONSIVE": "Its process is stopped (a debugger, SIGSTOP, a frozen container): look at it with ps.",
    "TB_AGENT_RANK": "Check AGENT_RANK, RANK and AGENT_RANK_OFFSET.",
    "TB_QUEUE_FULL": "Wait for answers before the next command.",
    "TB_EXISTS": "Close the other one first, or choose another name.",
    "TB_CLIENT_LOST": 'A client has ended in the middle of it: details["rank"] says whose.',
    "TB_COMMAND": "Install the same release of tensorbus for client and agent.",
    "TB_FOREIGN": "Run client and agent as the same user, or start the agent with --client-uid.",
    "TB_PAIR_UNKNOWN": "Call init_pair for this pair on this client first.",
    "TB_PAIR_MISMATCH": "Ranks of a side name one mesh, placements and size; sides name each other (me, peer).",
    "TB_BATCH_UNKNOWN": "Register the tensors again: the batch ended, with its agent, a peer or the store.",
    "TB_BATCH_MISMATCH": "Compare both sides; rename= and match= leave tensors out, split_fused cuts fused ones.",
    "TB_BUCKET_SIZE": "Give the same bucket_size on both sides, or none.",
    "TB_IN_DOUBT": "Transfer again: the next round settles it first.",
    "TB_NAMESPACE": "Run client and agent in one container, or use the agent's socket.",
    "TB_PLAN_TOO_LARGE": "Cut the tensors that the message names alike on both sides, or into fewer pieces.",
    "TB_TOPOLOGY": "Correct the topology that the agents were told (tensorbus agent --spec).",
    "TB_SEAL": "Hand over memory of tensorbus.empty or share: its size is sealed, and its space reserved.",
    "TB_SYSTEM": "The message names what the system refused: look at limits (ulimit -a) and at dmesg.",
    "TB_AUTH": "Start all agents with the same TENSOR_BUS_SECRET.",
    "TB_NCCL": "Set NCCL_DEBUG=WARN for the agents: NCCL says there what it met.",
    "TB_DEVICE_SHARED": "Give each rank a GPU of its own, or the agents another transport than NCCL.",
    "TB_NATIVE_MISSING": "`tensorbus doctor` of the command line says how the native library is built.",
    "TB_MODEL_CONFIG": "The message names the key: correct the config, or name the model's tensors one by one.",
    "TB_FILE": "Look at the path, and at who may read it.",
    "TB_PARTS": "The message names the tensor and the rule: compare both sides by `tensorbus layout`.",
    "TB_PRESET": "The message says what is known: choose another preset or option, or give a layout yourself.",
    "TB_STALE_VERSION": 'Other ranks are further: transfer again with the version of details["expected"].',
}


def make_error(code: str, message: str, details: Mapping[str, Any] | None = None) -> TensorBusError:
    """The exception of a code, of its own class."""
    return _classes.get(code, OperationError)(code, message, details)
