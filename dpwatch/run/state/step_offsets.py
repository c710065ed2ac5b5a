"""Tracks by how many steps each rank is ahead of the others when they meet in collectives.

Each rank counts steps by its own optimizer. Normally the counts agree at each collective or differ
by a constant, as after a process has replaced another. A rank that skips a step, or its calls, is
off by one more from then on: its calls match those of another step, and nothing fails. A rank
without optimizer steps (a parameter server, or one that shadows others in DDP's `join`) falls
behind in every step and is ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

MOST_GROUPS = 64

STEADY_STEPS = 5
"""An offset that has not changed for this many steps is steady."""

MOST_CHANGES = 3
"""A rank whose offset changed more often is erratic: its calls come from a thread of their own."""


REGULAR = 0.9
"""Ranks that meet in this share of recent steps are expected to be in the same step."""

RECENT = 63
"""Number of recent steps that `REGULAR` applies to."""

_ALL = (1 << RECENT) - 1

DRIFTS = 64
"""A rank whose offset changed this often drifts: its count stands still, or runs independently."""


class Offset(msgspec.Struct, array_like=True):
    """A rank's offset from most ranks of a group.

    Attributes:
        steps: Steps that it is ahead, negative if behind.
        since: First step, by the count of most ranks, with this offset.
        last: Last known step with this offset.
        before: The previous offset.
        steady: Number of steps that the previous offset lasted.
        changes: Number of changes so far.
    """

    steps: int
    since: int
    last: int
    before: int
    steady: int
    changes: int = 1


class GroupOffsets(msgspec.Struct, array_like=True):
    """Offsets of one group's ranks.

    Attributes:
        first: First step with a call that all ranks entered.
        last: Last such step.
        ranks: Offsets of ranks that have differed from most ranks at some time.
        is_loose: Whether a rank drifts, so that offsets mean nothing and the group is ignored.
        recent: Bit mask of recent steps with such a call; the lowest bit is the last step.
        generation: Generation of the group's name; a recreated group starts over.
    """

    first: int
    last: int
    ranks: dict[int, Offset] = {}
    is_loose: bool = False
    recent: int = 1
    generation: int = 0

    def reach(self, step: int) -> None:
        """Records that most ranks have reached a step."""
        ahead = step - self.last
        if ahead > 0:
            self.recent = (self.recent << min(ahead, RECENT)) & _ALL | 1
            self.last = step
        elif ahead > -RECENT:
            self.recent |= 1 << -ahead
        self.first = min(self.first, step)

    @property
    def is_regular(self) -> bool:
        """Whether the ranks meet in nearly every step; otherwise they may step independently."""
        span = min(RECENT, self.last - self.first + 1)
        return self.recent.bit_count() >= REGULAR * span


class StepOffsets(msgspec.Struct):
    """Offsets of all groups, by name."""

    groups: dict[str, GroupOffsets] = {}

    def record(self, group: str, steps: Mapping[int, int], generation: int = 0) -> None:
        """Records in which step each rank of a group entered a call, by its own count."""
        most = usual(steps)
        known = self._known(group, most, generation)
        if known is None:
            return
        if known.ranks or any(step != most for step in steps.values()):
            for r, step in steps.items():
                _follow(known, r, step - most, most)
        known.reach(most)

    def record_equal(self, group: str, step: int, generation: int = 0) -> bool:
        """Records a call entered by all ranks in one step. Returns False if `record` is needed."""
        known = self._known(group, step, generation)
        if known is not None and known.ranks:
            return False
        if known is not None:
            known.reach(step)
        return True

    def _known(self, group: str, step: int, generation: int) -> GroupOffsets | None:
        known = self.groups.get(group)
        is_new = known is None or known.generation < generation
        if is_new and (known is not None or len(self.groups) < MOST_GROUPS):
            known = self.groups[group] = GroupOffsets(step, step, generation=generation)
        if known is None or known.is_loose or known.generation != generation:
            return None
        return known

    def forget(self, rank: int) -> None:
        """Forgets a rank that restarts."""
        for known in self.groups.values():
            known.ranks.pop(rank, None)

    def shifted(self) -> Iterator[tuple[str, dict[int, Offset]]]:
        """Yields groups, with their ranks whose offset was steady, changed, and is steady again."""
        for group, known in self.groups.items():
            found = {
                r: each
                for r, each in known.ranks.items()
                if known.is_regular
                and not known.is_loose
                and each.steps != each.before
                and each.changes <= MOST_CHANGES
                and each.steady >= STEADY_STEPS
                and each.last - each.since >= STEADY_STEPS
            }
            if found:
                yield group, found

    def has_left(self, group: str, rank: int, ahead: int) -> bool:
        """Whether an offset of `ahead` steps is new for a rank whose offset was steady."""
        known = self.groups.get(group)
        if known is None or known.is_loose or not known.is_regular:
            return False
        each = known.ranks.get(rank)
        if each is None:
            return ahead != 0 and known.last - known.first >= STEADY_STEPS
        steady = each.last - each.since >= STEADY_STEPS and each.changes < MOST_CHANGES
        return ahead != each.steps and steady


def usual(steps: Mapping[int, int]) -> int:
    """The step that most ranks are in; the lowest if there are several."""
    counts = Counter(steps.values())
    most = max(counts.values())
    return min(step for step, count in counts.items() if count == most)


def _follow(known: GroupOffsets, r: int, ahead: int, step: int) -> None:
    each = known.ranks.get(r)
    if each is None:
        if ahead and not known.is_loose:
            steady = known.last - known.first
            known.ranks[r] = Offset(ahead, step, step, 0, steady)
    elif each.steps == ahead:
        each.last = max(each.last, step)
    else:
        steady = each.last - each.since
        known.ranks[r] = Offset(ahead, step, step, each.steps, steady, each.changes + 1)
        if each.changes >= DRIFTS:
            known.is_loose, known.ranks = True, {}
