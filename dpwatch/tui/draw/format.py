"""Numbers for people: three significant figures and a unit; unknown is `–`.

Every function here is pure and takes None for unknown. Memory is shown in binary units
(KiB, MiB, GiB), as torch and nvidia-smi count it.
"""

from __future__ import annotations

import math
import time

from dpwatch.units import UNKNOWN as UNKNOWN
from dpwatch.units import scaled
from dpwatch.units import significant as significant
from dpwatch.units import size as size

_DECIMAL = ("", "k", "M", "B", "T")


def count(number: float | None) -> str:
    """A count; from 10,000 on with k, M, B (10⁹) or T.

    >>> count(950), count(9_999), count(3_221_000)
    ('950', '9999', '3.22 M')
    """
    if number is None or not math.isfinite(number):
        return UNKNOWN
    if abs(number) < 9_999.5:
        return f"{number:.0f}"
    figure, unit = scaled(number, 1000, _DECIMAL)
    return f"{figure} {unit}"


def rate(number: float | None) -> str:
    """A count per second (or step), with decimals while it is small.

    >>> rate(3.14159), rate(212.4), rate(15_300)
    ('3.14', '212', '15.3 k')
    """
    if number is None or not math.isfinite(number):
        return UNKNOWN
    return significant(number) if abs(number) < 999.5 else count(number)


def clock_offset(offset_ms: float | None, error_ms: float | None) -> str:
    """The offset of a clock from another one, to the microsecond, with its error.

    >>> clock_offset(-5_000_000.028, 0.44), clock_offset(None, None)
    ('-5000.000028 s ± 0.440 ms', '–')
    """
    if offset_ms is None or error_ms is None:
        return UNKNOWN
    return f"{offset_ms / 1e3:+.6f} s ± {millis(error_ms)}"


def millis(value_ms: float | None) -> str:
    """Milliseconds, as ns, µs, ms, s or min, whichever fits.

    >>> millis(0.0421), millis(42.13), millis(4213), millis(600_000)
    ('42.1 µs', '42.1 ms', '4.21 s', '10.0 min')
    """
    if value_ms is None or not math.isfinite(value_ms):
        return UNKNOWN
    if value_ms == 0:
        return "0 ms"
    if abs(value_ms) < 1e-3:
        return f"{value_ms * 1e6:.0f} ns"
    if abs(value_ms) < 0.1:
        return f"{significant(value_ms * 1e3)} µs"
    if abs(value_ms) < 999.5:
        return f"{significant(value_ms)} ms"
    if abs(value_ms) < 119_500:
        return f"{significant(value_ms / 1e3)} s"
    return f"{significant(value_ms / 60e3)} min"


def bandwidth(gigabytes_per_s: float | None) -> str:
    """A bandwidth in 10⁹ bytes per second, decimal as in nccl-tests.

    >>> bandwidth(8.2), bandwidth(0.044), bandwidth(4e-6)
    ('8.20 GB/s', '44.0 MB/s', '4.00 kB/s')
    """
    if gigabytes_per_s is None or not math.isfinite(gigabytes_per_s):
        return UNKNOWN
    figure, unit = scaled(gigabytes_per_s * 1e9, 1000, ("", "k", "M", "G", "T"))
    return f"{figure} {unit}B/s"


def share(part: float | None) -> str:
    """A share 0..1 as a percentage.

    >>> share(0.123), share(0.004), share(0.0002), share(1)
    ('12%', '0.4%', '<0.1%', '100%')
    """
    if part is None or not math.isfinite(part):
        return UNKNOWN
    if part and abs(part) < 0.001:
        return "<0.1%"
    if part and abs(part) < 0.00995:
        return f"{part * 100:.1f}%"
    return f"{part * 100:.0f}%"


def ratio(value: float | None) -> str:
    """How many times.

    >>> ratio(1.8234), ratio(12.34)
    ('1.82×', '12.3×')
    """
    return UNKNOWN if value is None or not math.isfinite(value) else f"{significant(value)}×"


def time_of_day(wall_s: float) -> str:
    """A moment by this machine's clock, as `HH:MM:SS`."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(wall_s))
    except (OverflowError, ValueError, OSError):
        return UNKNOWN


def clock(seconds: float | None) -> str:
    """Elapsed time.

    >>> clock(31), clock(3671), clock(90_000)
    ('0:31', '1:01:11', '1d 1:00:00')
    """
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    text = f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{days}d {text}" if days else text


def age(seconds: float) -> str:
    """How long ago.

    >>> age(0.25), age(42.3), age(125), age(4000)
    ('0.2 s', '42 s', '2:05 min', '1:06:40')
    """
    return f"{seconds:.1f} s" if seconds < 9.95 else silence(seconds)


def silence(seconds: float) -> str:
    """How long since the last report, in whole seconds.

    >>> silence(9.2), silence(125), silence(4000)
    ('9 s', '2:05 min', '1:06:40')
    """
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    return clock(seconds) + (" min" if seconds < 3599.5 else "")


def number(value: float | None, figures: int = 4) -> str:
    """A plain number such as a loss; nan and inf are shown, since they are measured values.

    >>> number(3.02345), number(float("nan"))
    ('3.023', 'nan')
    """
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{figures - 1}e}"
    return significant(value, figures)
