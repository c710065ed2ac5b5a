"""What theory says of a scheme of data parallelism: bytes held, bytes moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dpwatch.plan.setup import Setup
from dpwatch.plan.traffic import wire_bytes


@dataclass(kw_only=True, slots=True, frozen=True)
class Held:
    """Bytes a device holds between steps, gradients not yet cleared."""

    params: int = 0
    grads: int = 0
    optimizer: int = 0
    buffers: int = 0


@dataclass(kw_only=True, slots=True, frozen=True)
class Collectives:
    """All calls of one op in one kind of group, as each rank makes them in a step.

    Attributes:
        op: c10d's plain name.
        ranks: Size of the group; every rank is in one of that kind.
        nbytes: Payload a rank hands in, summed over the calls (`wire.messages.Collective.nbytes`).
        count: Calls, None where it depends on how they are bucketed.
        device: Which of the rank's devices makes them.
    """

    op: str
    ranks: int
    nbytes: int
    count: int | None = None
    device: int = 0

    @property
    def sent_bytes(self) -> int:
        """What the algorithm puts on the wire, mean over the ranks."""
        return wire_bytes(self.op, self.nbytes, self.ranks)


@dataclass(kw_only=True, slots=True, frozen=True)
class Copies:
    """Copies of one kind from one device of a process to another, summed over a step."""

    kind: str
    src: int
    dst: int
    nbytes: int


class Scheme(Protocol):
    """The theory of one strategy.

    Devices are counted as the run's rows are: rank by rank, and within a rank as it drives them
    (a host that takes part comes last).
    """

    def held(self, setup: Setup) -> tuple[Held, ...]:
        """By device."""

    def peak_elements(self, setup: Setup) -> int:
        """Parameter-sized elements that all devices together hold at a step's peak, about.

        Parameters, gradients, optimizer state, buckets, copies; without activations.
        """

    def collectives(self, setup: Setup) -> tuple[Collectives, ...]:
        """What each rank issues in a settled step."""

    def copies(self, setup: Setup) -> tuple[Copies, ...]:
        """Between the devices of one process, the same in every process."""
