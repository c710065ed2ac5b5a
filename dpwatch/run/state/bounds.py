"""How much of a run a hub keeps, whoever sends what: beyond this, records are refused and counted.

A buggy script (a process group with a new name in every step, say) and a hostile one must not make
hub and viewers grow without end. What was there first stays, and stays true.
"""

from __future__ import annotations

RANKS = 16_384
"""Processes of a run."""

LANES = 32_768
"""Devices of all of them."""

LANES_A_RANK = 1024

OPS = 4096
"""Kinds of collectives: an op in a group."""

CELLS = 131_072
"""Ranks of all kinds of collectives, summed."""

CELLS_A_RANK = 512

ROUTES = 16_384
"""Pairs of devices, by kind of copy."""

EARLIER = 256
"""Runs that are kept of those that a hub has served before, …"""

EARLIER_ROWS = 1024
"""… and rows of all of them."""

CALLS_A_STEP = 1 << 19
"""Calls of one kind that one rank makes in one step, …"""

SUMMED_NS = 1 << 61
"""… and the time they take. With what a record may say, no sum leaves 64 bits."""

APART_NS = 1 << 46
"""Ranks that come to a collective a day apart do not tell the same time."""


class Full(Exception):
    """There is no room for another one of these."""
