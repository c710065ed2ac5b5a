"""Which of many short steps are measured: evenly distributed, and the same in all ranks.

In each block of ten steps, or in one block of 2, 4, 8, … for even shorter steps, two consecutive
steps are measured: the memory ledger scans before a step it samples. The position of the pair
differs from block to block. If it did not, work that a script does every ten steps (such as logging
the loss) would fall into half of the pairs or into none, and medians would be wrong. The position
depends on the step number alone. A block measured at one interval is also measured at any shorter
one, so ranks with different intervals have steps in common.
"""

from __future__ import annotations

BLOCK = 10


def pair_of(block: int) -> int:
    """First step of a block's pair; the second may belong to the next block."""
    return BLOCK * block + _mixed(block) % BLOCK


def next_pair(step: int, doublings: int) -> int:
    """First step of the first pair that does not begin before `step`.

    Args:
        step: Where to start.
        doublings: One block in `2 ** doublings` is measured.
    """
    group = step // (BLOCK << doublings)
    while (first := pair_of(_chosen(group, doublings))) < step:
        group += 1
    return first


def is_second(step: int) -> bool:
    """Whether this is the second step of a block's pair."""
    return step - 1 == pair_of((step - 1) // BLOCK)


def _chosen(group: int, doublings: int) -> int:
    """The block that is measured in a group of `2 ** doublings`, found by halving."""
    for level in range(doublings, 0, -1):
        group = 2 * group + _mixed(group + level) % 2
    return group


def _mixed(number: int) -> int:
    """A pseudo-random number that depends on `number` alone."""
    return (number * 2_654_435_761 & 0xFFFF_FFFF) >> 15
