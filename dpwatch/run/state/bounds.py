"""Limits on the size of a run's state. Records that exceed them are refused and counted.

Neither a buggy script (for example one that creates a process group with a new name in every step)
nor a hostile sender may make the hub and viewers grow without bound. Existing entries are kept.
"""

from __future__ import annotations

RANKS = 16_384
"""Processes per run."""

LANES = 32_768
"""Devices of all ranks together."""

LANES_A_RANK = 1024

OPS = 4096
"""Collectives, counted by op and group."""

CELLS = 131_072
"""Collectives and message peers, counted per rank and device and summed over all ranks."""

CELLS_A_RANK = 512

ROUTES = 16_384
"""Pairs of devices per kind of copy, summed over kinds."""

EARLIER = 256
"""Earlier runs kept of those that a hub has served."""

EARLIER_ROWS = 1024
"""Ranks kept of all earlier runs together."""

CALLS_A_STEP = 1 << 19
"""Calls with one signature per rank and step."""

SUMMED_NS = 1 << 61
"""Total time of those calls. Together with the ranges of records, no sum overflows 64 bits."""

APART_NS = 1 << 46
"""Arrivals at a collective further apart than this (20 hours) come from unrelated clocks."""


class LimitReached(Exception):
    """A limit of this module is reached."""
