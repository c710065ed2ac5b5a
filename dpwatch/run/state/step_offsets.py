"""In which step each rank calls what all call together: a rank that is some steps ahead or behind.

Ranks' steps are counted by their own optimizers. In a run in step they agree at each collective, or
lie apart by the same number always, as those do of a process that has taken another's place. A rank
that leaves out a step's calls, or a step, is off by one more from there on: its calls meet the
others' of another step, and nothing fails. A rank without optimizer steps (a parameter server, one
that shadows the others in DDP's `join`) falls back further in each step, and is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

MOST_GROUPS = 64

STEADY_STEPS = 5
"""A number of steps apart that has not changed for so many steps is a steady one."""

MOST_CHANGES = 3
"""A rank that has changed more often is now here and now there: calls of a thread of its own."""


REGULAR = 0.9
"""Ranks that meet in so many of their steps are expected to be in the same one, …"""

RECENT = 63
"""… of the last ones."""

_ALL = (1 << RECENT) - 1

DRIFTS = 64
"""One that has changed so often drifts: its steps don't go on, or go on by themselves."""


class Offset(msgspec.Struct, array_like=True):
    """How far a rank is from most ranks of a group.

    Attributes:
        steps: How many steps it is ahead, negative where it is behind, …
        since: … from which step of most ranks on …
        last: … to which one, as far as is known.
        before: How many it was ahead before that, …
        steady: … for how many steps.
        changes: How often it has changed.
    """

    steps: int
    since: int
    last: int
    before: int
    steady: int
    changes: int = 1


class GroupOffsets(msgspec.Struct, array_like=True):
    """Those of one group's ranks.

    Attributes:
        first: The first step in which a call was entered by all, and …
        last: … the last.
        ranks: Ranks that have not always been where most are.
        is_loose: One of them drifts, so that it says nothing where it is: nobody looks any more.
        recent: In which of the last steps there was such a call: a bit for each, the last lowest.
        generation: Of that name; a group that is made anew is another one.
    """

    first: int
    last: int
    ranks: dict[int, Offset] = {}
    is_loose: bool = False
    recent: int = 1
    generation: int = 0

    def reach(self, step: int) -> None:
        """Most ranks have come to that step."""
        ahead = step - self.last
        if ahead > 0:
            self.recent = (self.recent << min(ahead, RECENT)) & _ALL | 1
            self.last = step
        elif ahead > -RECENT:
            self.recent |= 1 << -ahead
        self.first = min(self.first, step)

    @property
    def is_regular(self) -> bool:
        """Whether the ranks meet in nearly every step: else they may take steps of their own."""
        span = min(RECENT, self.last - self.first + 1)
        return self.recent.bit_count() >= REGULAR * span


class StepOffsets(msgspec.Struct):
    """Those of all groups, by their names."""

    groups: dict[str, GroupOffsets] = {}

    def take(self, group: str, steps: Mapping[int, int], generation: int = 0) -> None:
        """All ranks of a group have entered a call, each in a step of its own count."""
        most = usual(steps)
        known = self._known(group, most, generation)
        if known is None:
            return
        if known.ranks or any(step != most for step in steps.values()):
            for r, step in steps.items():
                _follow(known, r, step - most, most)
        known.reach(most)

    def take_equal(self, group: str, step: int, generation: int = 0) -> bool:
        """All have entered it in the same step. Returns: whether that is all there is to know."""
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
        """A rank begins anew."""
        for known in self.groups.values():
            known.ranks.pop(rank, None)

    def shifted(self) -> Iterator[tuple[str, dict[int, Offset]]]:
        """By group, ranks that were where they should be, and have been off since, steadily."""
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
        """Whether a rank that is so far ahead now was steadily elsewhere before."""
        known = self.groups.get(group)
        if known is None or known.is_loose or not known.is_regular:
            return False
        each = known.ranks.get(rank)
        if each is None:
            return ahead != 0 and known.last - known.first >= STEADY_STEPS
        steady = each.last - each.since >= STEADY_STEPS and each.changes < MOST_CHANGES
        return ahead != each.steps and steady


def usual(steps: Mapping[int, int]) -> int:
    """The step that most ranks are in; of several the lowest."""
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
