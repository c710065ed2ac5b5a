"""A check's outcome."""

from __future__ import annotations

import msgspec

OK, NOTE, TROUBLE = "ok", "note", "trouble"


class Check(msgspec.Struct, frozen=True):
    """What was found about one thing.

    Attributes:
        name: The thing.
        mark: `ok`; `note` (works, and there is something to know, or a figure will be missing);
            `trouble` (something of dpwatch will not work here).
        text: What was found.
        advice: What to do about it, "" where there is nothing to do.
        value: The finding for programs; None where it is unknown or there is none.
    """

    name: str
    mark: str
    text: str
    advice: str = ""
    value: str | int | float | bool | None = None
