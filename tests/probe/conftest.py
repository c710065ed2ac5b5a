from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from dpwatch.probe import probe as probe_module
from dpwatch.probe.instruments import NoCollectives, NoLedger
from dpwatch.probe.probe import Probe
from dpwatch.probe.steps.lanes import here
from dpwatch.probe.steps.thread_clock import Clocks
from dpwatch.wire import codec
from dpwatch.wire.batching import unpack
from dpwatch.wire.messages import Asked, Batch, Issuer, Position, Step


class MemoryLink:
    """A link that keeps its frames; `full` makes it refuse them."""

    hub_seen = True
    patience_s = 0.0

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.full = False
        self.opened: list[tuple[str, int]] = []
        self.tended = 0
        self.closed = threading.Event()
        self.error: Exception | None = None
        self.request: Asked | None = None

    def open(self, run_id: str, local_rank: int) -> None:
        if self.error is not None:
            raise self.error
        self.opened.append((run_id, local_rank))

    def send(self, frame: bytes) -> bool:
        if not self.full:
            self.frames.append(frame)
        return not self.full

    def ensure_hub(self, now_ns: int) -> None:
        self.tended += 1

    def stack_request(self) -> Asked | None:
        request, self.request = self.request, None
        return request

    def close(self) -> None:
        self.closed.set()

    def send_after_close(self, frame: bytes) -> None:
        self.frames.append(frame)

    @property
    def batches(self) -> list[Batch]:
        return [codec.decode(frame) for frame in self.frames]

    def records(self, kind: type) -> list[Any]:
        """Records of one type, unpacked; steps of several devices in step order."""
        found = [r for batch in self.batches for r in unpack(batch.records) if isinstance(r, kind)]
        return sorted(found, key=lambda step: step.step) if kind is Step else found


class HandThread:
    """A thread's clock that tests set; wall time is shared."""

    knows_runqueue = True

    def __init__(self, clocks: HandClocks) -> None:
        self._clocks = clocks
        self.cpu = 0
        self.queued = 0

    def read(self) -> tuple[int, int, int]:
        return self._clocks.now, self.cpu, self.queued

    def ran_ns(self) -> int:
        return self.cpu

    def close(self) -> None:
        pass


class HandClocks(Clocks):
    """Clocks that only move when `run`, `block` or `queue` moves them for this thread."""

    def __init__(self) -> None:
        self.now = 1_000
        self._local = threading.local()

    def wall(self) -> int:
        return self.now

    def of_this_thread(self) -> Any:
        if not hasattr(self._local, "clock"):
            self._local.clock = HandThread(self)
        return self._local.clock

    def run(self, ns: int) -> None:
        self.now += ns
        self.of_this_thread().cpu += ns

    def queue(self, ns: int) -> None:
        self.now += ns
        self.of_this_thread().queued += ns

    def block(self, ns: int) -> None:
        self.now += ns


class HandCollectives:
    """Counts as many issued calls as a test says."""

    capture = "observer"
    calls = None

    def __init__(self) -> None:
        self.issued = 0

    def positions(self) -> list[Position]:
        return []

    def issuers(self) -> list[Issuer]:
        return []

    def complete(self, step: Step) -> Step:
        return step

    def unseen(self) -> str:
        return ""

    def close(self) -> None:
        pass


@dataclass
class Rig:
    """A probe on manual clocks with an in-memory link."""

    clocks: HandClocks
    link: MemoryLink
    collectives: HandCollectives
    probe: Probe
    ms: int = 1_000_000
    _extra: dict[str, Any] = field(default_factory=dict)

    def records(self, kind: type) -> list[Any]:
        """Closes the probe and returns what it sent."""
        self.probe.close()
        return self.link.records(kind)


@pytest.fixture(autouse=True)
def _own_thread_state() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    here.lane = None
    here.clock = None


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes without ledger and collectives."""
    monkeypatch.setattr(probe_module, "_ledger", lambda *_: NoLedger())
    monkeypatch.setattr(probe_module, "_collectives", lambda *_: NoCollectives())


@pytest.fixture
def link() -> MemoryLink:
    return MemoryLink()


@pytest.fixture
def make_probe(link: MemoryLink) -> Iterator[Callable[..., Probe]]:
    """Starts probes that send into `link`, and closes those still open."""
    started: list[Probe] = []

    def make(**options: Any) -> Probe:
        probe = Probe(**{"link": link, **options})
        started.append(probe)
        return probe

    yield make
    for probe in started:
        probe.close()


@pytest.fixture
def rig(
    bare: None,
    monkeypatch: pytest.MonkeyPatch,
    make_probe: Callable[..., Probe],
    link: MemoryLink,
) -> Rig:
    torch.set_num_threads(1)
    clocks, collectives = HandClocks(), HandCollectives()
    monkeypatch.setattr(probe_module, "_collectives", lambda *_: collectives)
    return Rig(clocks, link, collectives, make_probe(clocks=clocks))
