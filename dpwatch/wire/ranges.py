"""What a field of a record may hold, said in its type and checked where frames are decoded.

A value out of range refuses its record, whole: to clip it would make a false number of it. The
ranges lie far beyond what any run has, and so near that sums over a step stay within 64 bits.
What fields say of each other is checked in `sane`.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

RANKS = 1 << 20
"""Processes in a run."""

Step = Annotated[int, Meta(ge=0, le=1 << 40)]
"""A step, or how many of them."""

Seq = Annotated[int, Meta(ge=0, le=1 << 53)]
"""Counts calls or frames from 0."""

Index = Annotated[int, Meta(ge=0, le=1023)]
"""A device of a process."""

RankNumber = Annotated[int, Meta(ge=0, lt=RANKS)]
Ranks = Annotated[int, Meta(ge=1, le=RANKS)]

Pid = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]

Instant = Annotated[int, Meta(ge=0, le=1 << 61)]
"""Nanoseconds of a clock: 73 years."""

Apart = Annotated[int, Meta(ge=-(1 << 61), le=1 << 61)]
"""Nanoseconds from one clock to another."""

Duration = Annotated[int, Meta(ge=0, le=1 << 55)]
"""Nanoseconds: a year."""

Payload = Annotated[int, Meta(ge=0, le=1 << 43)]
"""Bytes handed to one call: 8 TiB."""

Bytes = Annotated[int, Meta(ge=0, le=1 << 53)]
"""Bytes of a memory."""

Count = Annotated[int, Meta(ge=0, le=1 << 53)]

Share = Annotated[float, Meta(ge=0, le=1)]
Celsius = Annotated[float, Meta(ge=-273.15, le=1000)]
Watts = Annotated[float, Meta(ge=0, le=1e6)]
Exit = Annotated[int, Meta(ge=-1024, le=1 << 32)]

Word = Annotated[str, Meta(max_length=256)]
"""A name of the field's or of a device, a group, a host."""

Line = Annotated[str, Meta(max_length=2048)]
"""Text for a person: a title, a reason, a place in the source."""
