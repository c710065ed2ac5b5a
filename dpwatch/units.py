"""Bytes as text, everywhere: binary units, as torch and nvidia-smi count memory."""

from __future__ import annotations

import math

UNKNOWN = "–"

MIB = 1 << 20

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def significant(value: float, figures: int = 3) -> str:
    """A number with that many significant figures; whole digits are never rounded away.

    >>> significant(3.14159), significant(42.123), significant(1234.6)
    ('3.14', '42.1', '1235')
    """
    if value == 0:
        return "0"
    shown = float(f"{value:.{figures}g}")  # 9.996 is 10.0, so it has one decimal and not two
    decimals = figures - 1 - math.floor(math.log10(abs(shown)))
    return f"{value:.{min(max(decimals, 0), 6)}f}"


def scaled(value: float, base: float, units: tuple[str, ...]) -> tuple[str, str]:
    """The number and the unit that leave at most three digits before the point."""
    unit = 0
    while abs(value) >= 999.5 and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    return (f"{value:.0f}" if unit == 0 else significant(value)), units[unit]


def size(nbytes: float | None) -> str:
    """Bytes with the unit that fits; `–` for None and for what is not finite.

    >>> size(58_900_000), size(0), size(None)
    ('56.2 MiB', '0 B', '–')
    """
    if nbytes is None or not math.isfinite(nbytes):
        return UNKNOWN
    figure, unit = scaled(nbytes, 1024, _BINARY)
    return f"{figure} {unit}"


def mebibytes(nbytes: float | None, decimals: int = 1) -> str:
    """Bytes in MiB without the unit, for a table whose heading names it; `–` for None."""
    return UNKNOWN if nbytes is None else f"{nbytes / MIB:.{decimals}f}"
