"""A training step around a piece of work: sampled, or one that is only counted.

The same steps are made with a probe and without, so that everything else is equal. This is the one
place in this folder that knows how the probe says which kind of step it is in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")
KINDS = ("sampled", "unsampled")
_BEFORE = 1
"""Steps before a sampled one: the second is always one whose memory a probe samples. In the first
it learns which devices there are, and in quick ones after it its budget may be spent."""

_ENOUGH_STEPS = 2_000
"""After so many short steps the probe must have left one out."""


class Body(nn.Module):
    """An outermost module whose forward does whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, work: Callable[[], T]) -> T:
        return work()


class Surroundings:
    """A tiny training run, which a piece of work is a part of.

    Args:
        probed: With a probe that watches it.

    Attributes:
        watched: The probe of the last work; None without one.
        memory_sampled: Whether memory of the last work's step was reported; None without a probe.
    """

    def __init__(self, *, probed: bool) -> None:
        self.probed = probed
        self.memory_sampled: bool | None = None
        self.watched: Watched | None = None
        self.body = Body()
        self.optimizer = torch.optim.SGD(self.body.parameters(), lr=1e-3)

    def run(self, kind: str, work: Callable[[Body], T]) -> T:
        """Does the work in a step of the kind.

        Args:
            kind: `sampled`: a step that the probe looks at and whose memory it samples;
                `unsampled`: a step that the probe only counts.
            work: Is given the module to call whatever belongs to forward.

        Raises:
            ProbeFailed: The probe turned itself off.
        """
        self.watched = watched = Watched() if self.probed else None
        try:
            for _ in range(_BEFORE):
                self._step()
            if kind == "unsampled":
                self._go_on_until_unsampled(watched)
            done = work(self.body)
            self._step()
        finally:
            if watched is not None:
                watched.close()
        if watched is not None:
            self.memory_sampled = watched.reported_memory(_BEFORE)
        return done

    def _go_on_until_unsampled(self, watched: Watched | None) -> None:
        for _ in range(_ENOUGH_STEPS):
            self._step()
            if watched is None or watched.sampled_out:
                return
        raise ProbeFailed("no short step was left out")

    def _step(self) -> None:
        self.optimizer.zero_grad()
        loss = self.body(lambda: (self.body.weight * self.body.weight).sum())
        loss.backward()
        self.optimizer.step()


class ProbeFailed(Exception):
    """The probe turned itself off, or never came into the state that was asked for."""


class Watched:
    """A probe whose frames stay here."""

    def __init__(self) -> None:
        from dpwatch.probe.probe import Probe

        self._link = _Kept()
        self._probe = Probe(title="harmless", link=self._link)

    @property
    def sampled_out(self) -> bool:
        """Whether the step under way is only counted."""
        return bool(self._probe.steps.main.sampled_out)

    def reported_memory(self, step: int) -> bool:
        """Whether memory of that step was among what the probe, now closed, has sent."""
        from dpwatch.wire import codec
        from dpwatch.wire.messages import Memory

        records = [each for frame in self._link.frames for each in codec.decode(frame).records]
        return any(isinstance(each, Memory) and each.step == step for each in records)

    def fail(self, error: Exception) -> None:
        """Makes the probe turn itself off, as an error of its own does."""
        self._probe.fail(error)

    def close(self) -> None:
        """Closes it. Raises: ProbeFailed if it had turned itself off."""
        trouble = self._probe._trouble
        self._probe.close()
        if trouble is not None:
            raise ProbeFailed(f"the probe turned itself off: {trouble!r}")


class _Kept:
    """A link that takes every frame."""

    hub_seen, patience_s = True, 0.0

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def open(self, run_id: str, local_rank: int) -> None:
        pass

    def send(self, frame: bytes) -> bool:
        self.frames.append(frame)
        return True

    def ensure_hub(self, now_ns: int) -> None:
        pass

    def stack_request(self) -> Any:
        return None

    def close(self) -> None:
        pass
