"""The range of values each record field may hold, as types that the decoder checks.

A value out of range rejects the whole record; clipping it would produce a false number. The ranges
are far wider than any real run needs, yet narrow enough that sums over a step stay within 64 bits.
Constraints between fields are checked in `validation`.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

RANKS = 1 << 20
"""Processes in a run."""

Step = Annotated[int, Meta(ge=0, le=1 << 40)]
"""A step number, or a number of steps."""

Seq = Annotated[int, Meta(ge=0, le=1 << 53)]
"""Sequence number of calls or frames, from 0."""

Index = Annotated[int, Meta(ge=0, le=1023)]
"""Index of a device within its process."""

RankNumber = Annotated[int, Meta(ge=0, lt=RANKS)]
Ranks = Annotated[int, Meta(ge=1, le=RANKS)]

Pid = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]

Instant = Annotated[int, Meta(ge=0, le=1 << 61)]
"""Nanoseconds on a clock; the limit is 73 years."""

Apart = Annotated[int, Meta(ge=-(1 << 61), le=1 << 61)]
"""Difference between two clocks, in nanoseconds."""

Duration = Annotated[int, Meta(ge=0, le=1 << 55)]
"""Nanoseconds; the limit is about a year."""

Payload = Annotated[int, Meta(ge=0, le=1 << 43)]
"""Bytes passed to one call; the limit is 8 TiB."""

Bytes = Annotated[int, Meta(ge=0, le=1 << 53)]
"""A size of memory, in bytes."""

Count = Annotated[int, Meta(ge=0, le=1 << 53)]

Share = Annotated[float, Meta(ge=0, le=1)]
Celsius = Annotated[float, Meta(ge=-273.15, le=1000)]
Watts = Annotated[float, Meta(ge=0, le=1e6)]
Exit = Annotated[int, Meta(ge=-1024, le=1 << 32)]

Word = Annotated[str, Meta(max_length=256)]
"""A short name: an op, a device, a group, a host."""

Line = Annotated[str, Meta(max_length=2048)]
"""Text for a person: a title, a reason, a source location."""
