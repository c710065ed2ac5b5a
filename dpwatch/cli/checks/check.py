"""The result of a check."""

from __future__ import annotations

import msgspec

OK, NOTE, TROUBLE = "ok", "note", "trouble"


class Check(msgspec.Struct, frozen=True):
    """The result of one check.

    Attributes:
        name: What was checked.
        mark: `ok`; `note` (works, but there is something to know, or some data will be missing);
            `trouble` (part of dpwatch will not work here).
        text: The result.
        advice: What to do about it, "" for nothing.
        value: The result for programs; None if unknown or if there is none.
    """

    name: str
    mark: str
    text: str
    advice: str = ""
    value: str | int | float | bool | None = None
