"""The theory of a scheme of data parallelism: bytes held, bytes moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dpwatch.plan.setup import Setup
from dpwatch.plan.traffic import wire_bytes


@dataclass(kw_only=True, slots=True, frozen=True)
class Held:
    """Bytes a device holds between steps, before gradients are cleared."""

    params: int = 0
    grads: int = 0
    optimizer: int = 0
    buffers: int = 0


@dataclass(kw_only=True, slots=True, frozen=True)
class Collectives:
    """All calls of one op in one kind of group that each rank makes in a step.

    Attributes:
        op: c10d's plain name.
        ranks: Size of the group; every rank is in one group of that kind.
        nbytes: Payload a rank passes in, summed over the calls (`wire.messages.Collective.nbytes`).
        count: Number of calls, None if it depends on bucketing.
        device: The rank's device that makes them.
    """

    op: str
    ranks: int
    nbytes: int
    count: int | None = None
    device: int = 0

    @property
    def sent_bytes(self) -> int:
        """Bytes the algorithm puts on the wire, averaged over the ranks."""
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

    Devices are in the order of the run's rows: rank by rank, and within a rank in the order of its
    devices (a host that takes part comes last).
    """

    def held(self, setup: Setup) -> tuple[Held, ...]:
        """Bytes held, by device."""

    def peak_elements(self, setup: Setup) -> int:
        """Approximate number of parameter-sized elements that all devices hold at a step's peak.

        Parameters, gradients, optimizer state, buckets, copies; without activations.
        """

    def collectives(self, setup: Setup) -> tuple[Collectives, ...]:
        """What each rank issues in a steady step."""

    def copies(self, setup: Setup) -> tuple[Copies, ...]:
        """Copies between the devices of one process, the same in every process."""
