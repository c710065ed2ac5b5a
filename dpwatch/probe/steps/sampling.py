"""Which of many short steps are looked at: spread evenly, and the same in all ranks.

Of each block of ten steps, or of one block in 2, 4, 8, … where steps are shorter still, a pair of
neighbours: the memory ledger looks around before a step it samples. Where in the block they lie
differs from block to block. Were it always the same place, what a script does every ten steps
(writing its loss, say) would fall into half of the pairs or into none, and medians would be wrong.
It follows from the step's number alone; and a block looked at at some pace is one looked at at any
faster pace, so that ranks of different pace have some in common.
"""

from __future__ import annotations

BLOCK = 10


def pair_of(block: int) -> int:
    """The first step of the pair of a block; the second may belong to the next block."""
    return BLOCK * block + _mixed(block) % BLOCK


def next_pair(step: int, doublings: int) -> int:
    """The first step of the first pair that does not begin before `step`.

    Args:
        step: From which on.
        doublings: One block in `2 ** doublings` is looked at.
    """
    group = step // (BLOCK << doublings)
    while (first := pair_of(_chosen(group, doublings))) < step:
        group += 1
    return first


def is_second(step: int) -> bool:
    """Whether this is the second step of a block's pair."""
    return step - 1 == pair_of((step - 1) // BLOCK)


def _chosen(group: int, doublings: int) -> int:
    """The block that is looked at, of a group of `2 ** doublings`: from half to half."""
    for level in range(doublings, 0, -1):
        group = 2 * group + _mixed(group + level) % 2
    return group


def _mixed(number: int) -> int:
    """A number that looks random and is always the same."""
    return (number * 2_654_435_761 & 0xFFFF_FFFF) >> 15
