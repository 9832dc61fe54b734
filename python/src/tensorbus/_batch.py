"""A batch that was registered, as its client's caller holds it."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ._cuda import EventPair, current_stream
from ._link import Call, Link
from ._tensors import Slot
from .errors import TensorBusError, make_error
from .messages import CleanupBatch

if TYPE_CHECKING:
    from ._semaphore import Semaphore
    from .client import TensorBusClient


class Registration:
    """What a client and the handler of a batch share. It knows neither."""

    def __init__(
        self,
        link: Link,
        batch_id: str | int,
        pair_names: list[str],
        slots: Sequence[Slot],
        answer: dict[str, Any],
        events: Sequence[EventPair] = (),
    ) -> None:
        self.link = link
        self.batch_id = batch_id
        self.pair_names = pair_names
        # The tensors and their memory live as long as the agent may use them.
        self.slots: Sequence[Slot] = slots
        self.instance = int(answer["instance"])
        self.answer = answer
        # One for each GPU that tensors lie on.
        self.events = events
        # Those that the agent has not let go of, with their directions.
        self._rounds: list[tuple[str, Call]] = []
        self.error: TensorBusError | None = None

    def require_open(self) -> None:
        if self.error is None and not self.link.is_open:
            self.error = self.link.error
        if self.error is not None:
            raise self.error

    def write(self) -> int:
        """Brings the copies up to date before a send."""
        return sum(slot.write() for slot in self.slots)

    def read_back(self) -> int:
        """Brings the tensors up to date after a receive."""
        return sum(slot.read_back() for slot in self.slots)

    def check(self) -> None:
        """Looks that the tensors are those that were registered."""
        for slot in self.slots:
            slot.check()

    def record_ready(self) -> None:
        """Makes the round wait for all work that the current streams have been given so far."""
        for events in self.events:
            events.record_ready(current_stream(events.ordinal))

    def begin(self, direction: str, call: Call) -> None:
        """A round is to be sent: it is known before that, so that nothing can come between."""
        self._rounds = [each for each in self._rounds if not each[1].is_released]
        self._rounds.append((direction, call))

    def interrupted_round(self, direction: str) -> Call | None:
        """A round that its caller has left and that the agent has not let go of: until then it takes no other."""
        for each, call in self._rounds:
            if each == direction and (call.is_taken_back or call.done) and not call.is_released:
                return call
        return None

    def await_interrupted(self, direction: str, deadline: float | None) -> None:
        """Waits until the agent has let go of a round that its caller has left. ``TB_TIMEOUT`` beyond the deadline."""
        call = self.interrupted_round(direction)
        if call is None:
            return
        self.link.await_release(call, None if deadline is None else max(0.0, deadline - time.monotonic()))
        self.link.require_release(call)

    def end(self, error: TensorBusError, anew: bool = False) -> None:
        """The agent has let go of it, or is gone."""
        if self.error is None or anew:
            self.error = error
        self.slots = ()
        self.events = ()

    def post_close(self) -> None:
        """Has the agent free it; nobody waits."""
        if self.error is None:
            self.link.post("CleanupBatch", {"batch": self.batch_id, "instance": self.instance})
            self.end(closed_error(self.batch_id))


def quiesce(registrations: Iterable[Registration], timeout: float) -> None:
    """Takes back all rounds under way, and waits until no agent touches memory of GPUs: others get it then."""
    deadline = time.monotonic() + timeout
    rounds = [(each.link, call) for each in registrations for _, call in each._rounds if call.memory is not None]
    for link, call in rounds:
        link.take_back(call)
    for link, call in rounds:
        link.await_release(call, max(0.0, deadline - time.monotonic()))


def closed_error(batch_id: str | int) -> TensorBusError:
    return make_error("TB_CLOSED", f"batch {batch_id} was closed", {"batch": batch_id})


class BatchHandler:
    """Made by ``TensorBusClient.register_tensors``. It does not keep its client alive.

    Attributes:
        batch_id: The id, the same on both sides.
        pair_names: The pairs of the batch's tensors, each once, in the order of the tensors.
    """

    def __init__(
        self, client: TensorBusClient, batch_id: str | int, pair_names: list[str], registration: Registration
    ) -> None:
        self.batch_id = batch_id
        self.pair_names = pair_names
        self._client = weakref.ref(client)
        self._registration = registration
        self._pid = os.getpid()

    @property
    def client(self) -> TensorBusClient:
        """The client; a ``RuntimeError`` once it was collected."""
        client = self._client()
        if client is None:
            raise make_error(
                "TB_CLOSED", f"the client of batch {self.batch_id} was collected", {"batch": self.batch_id}
            )
        return client

    @property
    def plans(self) -> dict[str, Any]:
        """For ``send`` and ``recv``: the digest of the plan that all ranks hold, or why there is none."""
        return {direction: self._registration.answer[direction] for direction in ("send", "recv")}

    @property
    def is_open(self) -> bool:
        """True until it was closed, or has ended with its agent, a peer or the store."""
        return self._registration.error is None and self._registration.link.is_open

    @property
    def copied_bytes(self) -> int:
        """Bytes that each round copies between tensors and shared memory, as far as is known beforehand."""
        return sum(slot.bytes for slot in self._registration.slots if slot.is_copied)

    def transfer(
        self, transfer_type: str, blocking: bool = False, timeout: float = 30.0, *, version: int | None = None
    ) -> Semaphore:
        """Runs a round: as ``TensorBusClient.transfer``, for this registration."""
        return self.client._transfer(self._registration, transfer_type, blocking, timeout, version)

    def query_transfer_signal(self, blocking: bool = True, timeout: float = 30.0) -> bool:
        """True once the sending side has its round ready: as ``TensorBusClient.query_transfer_signal``."""
        return bool(self.client._query(self._registration, timeout)["ready"])

    def close(self, blocking: bool = True, timeout: float = 30.0) -> None:
        """Frees the batch in the agent. A second call does nothing, and one that took the id later is left alone."""
        registration = self._registration
        if registration.error is not None or os.getpid() != self._pid:
            return
        if not blocking:
            registration.post_close()
            return
        link = registration.link
        message = CleanupBatch(self.batch_id, registration.instance)
        try:
            link.wait(link.submit("CleanupBatch", message.body, timeout, name=message.semaphore_name))
        except TensorBusError as error:
            # An agent that has ended has freed it too.
            if error.code not in ("TB_AGENT_LOST", "TB_CLOSED"):
                raise
        # The agent has told of the end already, as it does whatever the reason.
        registration.end(closed_error(self.batch_id), anew=True)

    def __enter__(self) -> BatchHandler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if os.getpid() == getattr(self, "_pid", None):
            with contextlib.suppress(Exception):
                self._registration.post_close()
