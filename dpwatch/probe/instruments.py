"""Interfaces between the probe's core and its instruments: ledger, collectives, GPU reader.

The core starts each instrument with plain callables and keeps the handle. An instrument that cannot
start raises, and the core goes on without it. All are called on the training thread unless stated
otherwise, so none may block.

    ledger.start(record: RecordSink, devices: Sequence[DeviceInfo], …) -> LedgerLike
    collectives.start(record: RecordSink, step_of: Callable[[], int]) -> CollectivesLike
    gpu.poll() -> list[Gpu]                                # on the sender thread
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

    from dpwatch.probe.collectives.flight_recorder import ReturnedCalls
    from dpwatch.probe.steps.lanes import Lane
    from dpwatch.wire.messages import Issuer, Position, Step


class LedgerLike(Protocol):
    """Measures memory by device and category: records `Memory` on sampled steps."""

    def step_begin(self, step: int) -> None:
        """Step `step` begins (lane 0; for step 0 at its first event)."""

    def step_end(
        self, step: int, optimizers: Iterable[Optimizer], models: Iterable[Module]
    ) -> None:
        """The step ended, in the optimizer's post hook, with all optimizers and outermost models.

        Iterating them looks them up, which costs time: do so only when needed.
        """

    def before_forward(self) -> None:
        """The first forward of the step, or the first after a backward, begins (lane 0)."""

    def before_backward(self) -> None:
        """An outermost backward begins (lane 0)."""

    def enter_lane(self, device: int) -> None:
        """This thread starts a job for `device`."""

    def exit_lane(self) -> None:
        """The job ends, on the same thread and properly nested."""

    def owner(self, device: int) -> AbstractContextManager[None]:
        """While entered, storages that this thread allocates belong to `device`."""

    def holds(self, device: int, things: Sequence[Module | Optimizer]) -> None:
        """What these keep from step to step lives on `device`. Does not raise."""

    def close(self) -> None:
        """Removes all hooks."""


class CollectivesLike(Protocol):
    """Observes every collective and records `Collective`.

    Attributes:
        issued: Calls issued so far by any thread of this process; never decreases.
        capture: As in `Hello.capture`.
        main: The training thread's lane, for calls that autograd's own threads issue.
        calls: NCCL calls that have returned; collected while this is set.
    """

    issued: int
    capture: str
    main: Lane | None
    calls: ReturnedCalls | None

    def positions(self) -> list[Position]:
        """Progress in each group, latest first. On the sender thread."""

    def issuers(self) -> list[Issuer]:
        """What frameworks have issued so far. On the sender thread."""

    def complete(self, step: Step) -> Step:
        """Adds what is known of its communication to a step's record. On the sender thread."""

    def unseen(self) -> str:
        """Communication of this process that cannot be observed, "" if none is known."""

    def close(self) -> None:
        """Removes the observer."""


class NoLedger:
    """Used if there is no ledger."""

    def step_begin(self, step: int) -> None:
        """See `LedgerLike`."""

    def step_end(
        self, step: int, optimizers: Iterable[Optimizer], models: Iterable[Module]
    ) -> None:
        """See `LedgerLike`."""

    def before_forward(self) -> None:
        """See `LedgerLike`."""

    def before_backward(self) -> None:
        """See `LedgerLike`."""

    def enter_lane(self, device: int) -> None:
        """See `LedgerLike`."""

    def exit_lane(self) -> None:
        """See `LedgerLike`."""

    def owner(self, device: int) -> AbstractContextManager[None]:
        """See `LedgerLike`."""
        return nullcontext()

    def holds(self, device: int, things: Sequence[Module | Optimizer]) -> None:
        """See `LedgerLike`."""

    def close(self) -> None:
        """See `LedgerLike`."""


class NoCollectives:
    """Used if collectives cannot be observed."""

    issued = 0
    capture = "none"
    main: Lane | None = None
    calls: ReturnedCalls | None = None

    def positions(self) -> list[Position]:
        """See `CollectivesLike`."""
        return []

    def issuers(self) -> list[Issuer]:
        """See `CollectivesLike`."""
        return []

    def complete(self, step: Step) -> Step:
        """See `CollectivesLike`."""
        return step

    def unseen(self) -> str:
        """See `CollectivesLike`."""
        return ""

    def close(self) -> None:
        """See `CollectivesLike`."""
