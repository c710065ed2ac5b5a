"""Base class of all records that a rank streams."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Base of all records; `device` is an index into the rank's `Hello.devices`."""
