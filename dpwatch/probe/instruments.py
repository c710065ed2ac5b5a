"""The seams between the probe's core and its instruments: ledger, collectives, GPU reader.

The core starts each instrument with plain callables and keeps the handle. An instrument that
can't start raises; the core then goes on without it. All are called on the training thread
unless said otherwise, so none may block.

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

    from dpwatch.probe.collectives.flight_recorder import Calls
    from dpwatch.probe.steps.lanes import Lane
    from dpwatch.wire.messages import Issuer, Position, Step


class LedgerLike(Protocol):
    """Tells memory by device and category: records `Memory` on the steps it samples."""

    def step_begin(self, step: int) -> None:
        """Step `step` begins (lane 0; for step 0 at its first event)."""

    def step_end(
        self, step: int, optimizers: Iterable[Optimizer], models: Iterable[Module]
    ) -> None:
        """It ended, in the optimizer's post hook; all optimizers and outermost models so far.

        Both are looked up when iterated, which costs: only do so where they are needed.
        """

    def before_forward(self) -> None:
        """The first forward of the step, or after a backward of it, begins (lane 0)."""

    def before_backward(self) -> None:
        """An outermost backward begins (lane 0)."""

    def enter_lane(self, device: int) -> None:
        """This thread begins a job for `device`."""

    def exit_lane(self) -> None:
        """The job ends, on the same thread and properly nested."""

    def owner(self, device: int) -> AbstractContextManager[None]:
        """Storages this thread allocates meanwhile belong to `device`."""

    def holds(self, device: int, things: Sequence[Module | Optimizer]) -> None:
        """What these keep from step to step lies on `device`. Does not raise."""

    def close(self) -> None:
        """Removes all there is to remove."""


class CollectivesLike(Protocol):
    """Sees every collective and records `Collective`.

    Attributes:
        issued: Calls issued so far by any thread of this process; only grows.
        capture: As in `Hello.capture`.
        main: The training thread's lane, for what autograd's own threads issue.
        calls: NCCL calls that have returned, kept while this is set.
    """

    issued: int
    capture: str
    main: Lane | None
    calls: Calls | None

    def positions(self) -> list[Position]:
        """How far each group has come, the latest first. On the sender thread."""

    def issuers(self) -> list[Issuer]:
        """What frameworks have issued so far. On the sender thread."""

    def complete(self, step: Step) -> Step:
        """A step's record with what is known of its communication. On the sender thread."""

    def unseen(self) -> str:
        """What this process may exchange that is not seen, "" where nothing is known of."""

    def close(self) -> None:
        """Removes the observer."""


class NoLedger:
    """Stands in where there is no ledger."""

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
    """Stands in where collectives aren't seen."""

    issued = 0
    capture = "none"
    main: Lane | None = None
    calls: Calls | None = None

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
