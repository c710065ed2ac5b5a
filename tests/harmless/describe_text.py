"""Text that is compared: what differs between any two processes is taken out."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


def without_addresses(text: str) -> str:
    """Text without memory addresses."""
    return _ADDRESS.sub("0x…", text)
