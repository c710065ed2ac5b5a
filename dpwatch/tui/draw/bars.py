"""Stacked bars, to an eighth of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from rich.style import Style

from dpwatch.tui.draw.palette import Kind, Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import Part, line

EIGHTHS = 8
_LEFT_BLOCKS = " ▏▎▍▌▋▊▉█"
_DARK, _LIGHT = "#0d1117", "#f4f8fc"


def apportion(values: Sequence[float], total: float, units: int) -> list[int]:
    """Share `units` among values as they share `total`, by largest remainder.

    The result sums to the values' own share of `units`, rounded: to `units` exactly when the
    values sum to `total`. Values below zero count as zero, and more than `total` fills the bar.
    """
    kept = [max(value, 0.0) for value in values]
    whole = max(total, sum(kept))
    if whole <= 0 or units <= 0:
        return [0] * len(kept)
    exact = [value / whole * units for value in kept]
    parts = [int(value) for value in exact]
    missing = round(sum(exact)) - sum(parts)
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for index in by_remainder[:missing]:
        parts[index] += 1
    return parts


def stacked(
    values: Mapping[str, float | None],
    kinds: Mapping[str, Kind],
    width: int,
    palette: Palette,
    *,
    total: float | None = None,
    letters: bool = True,
) -> Text:
    """A bar of exactly `width` cells, one coloured segment per kind.

    Args:
        values: Amount by kind name; None (unknown) draws nothing.
        kinds: Colour and letter by name; their order is the bar's.
        width: Cells.
        palette: Theme; in a `mono` one each cell holds its segment's letter.
        total: The amount of a full bar (default: the sum of the values).
        letters: Put each segment's letter into it if it is wide enough.
    """
    names = [name for name in kinds if (values.get(name) or 0) > 0]
    amounts = [float(values[name] or 0) for name in names]
    full = sum(amounts) if total is None else total
    if not names or width <= 0:
        return Text("·" * max(width, 0), style=palette.faint)
    order = [kinds[name] for name in names]
    if palette.mono:
        return _letter_bar(order, apportion(amounts, full, width), width, palette)
    eighths = apportion(amounts, full, width * EIGHTHS)
    return _block_bar(tuple(order), tuple(eighths), width, palette, letters)


def _letter_bar(kinds: Sequence[Kind], cells: Sequence[int], width: int, palette: Palette) -> Text:
    bar = Text()
    for index, (kind, length) in enumerate(zip(kinds, cells, strict=True)):
        bar.append(kind.letter * length, palette.strong if index % 2 == 0 else palette.text)
    bar.append("·" * (width - sum(cells)), palette.faint)
    return bar


@lru_cache(maxsize=2048)
def _block_bar(
    kinds: tuple[Kind, ...], eighths: tuple[int, ...], width: int, palette: Palette, letters: bool
) -> Text:
    """Cells inside a segment carry its colour as background; the cell of a border carries both."""
    parts: list[Part] = []
    track = palette.track
    position = drawn = 0
    for index, (kind, length) in enumerate(zip(kinds, eighths, strict=True)):
        end = position + length
        first, last = -(-position // EIGHTHS), end // EIGHTHS
        if last > first:
            parts.append((_segment(kind, last - first, letters), segment_style(kind)))
            drawn += last - first
        if end % EIGHTHS and end // EIGHTHS >= drawn:
            following = next(
                (
                    k.color
                    for k, n in zip(kinds[index + 1 :], eighths[index + 1 :], strict=True)
                    if n
                ),
                track,
            )
            parts.append((_LEFT_BLOCKS[end % EIGHTHS], _style(kind.color, following)))
            drawn += 1
        position = end
    if drawn < width:
        parts.append((" " * (width - drawn), _style(None, track)))
    return line(*parts)


def _segment(kind: Kind, cells: int, letters: bool) -> str:
    return (f" {kind.letter}" if letters and cells >= 3 else "").ljust(cells)


def segment_style(kind: Kind) -> Style:
    """A segment's colour as background, its letter readable on it."""
    return _style(_DARK if kind.dark_letter else _LIGHT, kind.color, bold=True)


@lru_cache(maxsize=512)
def _style(color: str | None, bgcolor: str, bold: bool | None = None) -> Style:
    return Style(color=color, bgcolor=bgcolor, bold=bold)


def gauge(part: float | None, width: int, palette: Palette, style: Style) -> Text:
    """A progress bar for a share 0..1; dots if the share is unknown."""
    if part is None:
        return Text("·" * width, style=palette.faint)
    eighths = round(min(max(part, 0.0), 1.0) * width * EIGHTHS)
    full, rest = divmod(eighths, EIGHTHS)
    on_track = style + Style(bgcolor=palette.track)
    bar = Text("█" * full, style=on_track)
    if rest:
        bar.append(_LEFT_BLOCKS[rest], on_track)
    bar.append("·" * (width - len(bar)) if palette.mono else " " * (width - len(bar)), on_track)
    return bar
