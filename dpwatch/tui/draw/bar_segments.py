"""The parts of a device's step and memory: bar segments, their figures, the legend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from dpwatch.run.model.snapshot import MemoryUse, PhaseTimes
from dpwatch.tui.draw.bars import segment_style
from dpwatch.tui.draw.palette import MEMORY_KINDS, PHASE_KINDS, PHASE_NAMES, Kind, Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import Part, fitted, line
from dpwatch.wire.messages import CATEGORIES


def phase_parts(phases: PhaseTimes) -> dict[str, float | None]:
    """Milliseconds by phase name."""
    return {name: getattr(phases, name) for name in PHASE_NAMES}


def memory_parts(memory: MemoryUse) -> dict[str, float | None]:
    """Bytes by category at the peak; `untold` is what the source doesn't break down."""
    parts: dict[str, float | None] = {name: getattr(memory, name) for name in CATEGORIES}
    if memory.peak_bytes is not None:
        parts["untold"] = max(memory.peak_bytes - sum(value or 0 for value in parts.values()), 0)
    return parts


def figures(
    parts: Mapping[str, float | None],
    kinds: Mapping[str, Kind],
    show: Callable[[float | None], str],
    width: int,
    palette: Palette,
) -> Text:
    """The largest parts' figures that fit, in the bar's order, each after its letter."""
    return figures_line(largest_figures(parts, kinds, show, width), palette)


def largest_figures(
    parts: Mapping[str, float | None],
    kinds: Mapping[str, Kind],
    show: Callable[[float | None], str],
    width: int,
) -> tuple[tuple[str, str], ...]:
    """Letters and figures of the largest parts that fit, in the bar's order."""
    chosen: dict[str, str] = {}
    room = width + 1
    for name in sorted(parts, key=lambda n: -(parts[n] or 0)):
        if not parts[name]:
            break
        shown = show(parts[name])
        room -= len(kinds[name].letter) + 1 + len(shown) + 2
        if room < -1:
            break
        chosen[name] = shown
    return tuple((kind.letter, chosen[name]) for name, kind in kinds.items() if name in chosen)


def figures_line(chosen: Sequence[tuple[str, str]], palette: Palette) -> Text:
    """Figures after their letters."""
    cells: list[Part] = []
    for letter, figure in chosen:
        cells += [("  " if cells else "", palette.muted), (letter, palette.strong)]
        cells.append((f" {figure}", palette.muted))
    return line(*cells)


@lru_cache(maxsize=4)
def legend_lines(width: int, palette: Palette) -> list[Text]:
    """What the colours and letters in the bars mean, on one line or two."""
    told_apart = {name: kind for name, kind in MEMORY_KINDS.items() if name != "untold"}
    phases, memory = (
        _legend(title, kinds, "  ", palette)
        for title, kinds in (("phases", PHASE_KINDS), ("memory", told_apart))
    )
    if phases.cell_len + memory.cell_len + 3 <= width:
        return [line(phases, ("   ", palette.text), memory)]
    if memory.cell_len > width:
        memory = _legend("memory", told_apart, " ", palette)
    return [fitted(phases, width), fitted(memory, width)]


def _legend(title: str, kinds: Mapping[str, Kind], gap: str, palette: Palette) -> Text:
    result = line((f"{title} ", palette.muted))
    for index, kind in enumerate(kinds.values()):
        result.append(gap if index else " ")
        result.append(kind.letter, palette.strong if palette.mono else segment_style(kind))
        result.append(f" {kind.name}", palette.muted)
    return result
