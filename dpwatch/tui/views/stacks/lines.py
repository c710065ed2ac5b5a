"""The ranks' Python stacks: all ranks in groups, or one with all its threads. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style

from dpwatch.run.derive.stack_text import age, group_name, thread_name, why
from dpwatch.run.model.ranks import name_ranks
from dpwatch.run.model.snapshot import ENDED, RunView
from dpwatch.run.model.stacks import Group, RankStacks, groups
from dpwatch.text_safety import clean
from dpwatch.tui.draw.layout import Block, heading
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.sentences import plural, run_title
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import clip, fitted, line, wrapped

_LISTED = 12
"""Groups named above the stacks; further ones have few ranks each and are scrolled to."""


def stack_lines(view: RunView, rank: int | None, width: int, palette: Palette, hint: str) -> Block:
    """The stacks of one rank, or of all.

    Args:
        view: The run.
        rank: Which one; None for all.
        width: Cells.
        palette: Theme.
        hint: Shown while there are no stacks.
    """
    entries = [e for e in view.stacks if rank is None or e.rank == rank]
    lines = [_head(view, rank, entries, palette)]
    why_not = _why_not(view)
    if why_not:
        lines += wrapped(why_not, width, palette.warn)
    lines.append(Text())
    if not entries and not why_not:
        lines.append(line((hint, palette.muted)))
    elif entries:
        lines += _all(entries, width, palette) if rank is None else _one(entries[0], width, palette)
    return [fitted(each, width) for each in lines]


def _head(view: RunView, rank: int | None, entries: Sequence[RankStacks], palette: Palette) -> Text:
    if rank is None:
        whose = f"stacks of {plural(len({r.rank for r in view.run.ranks}), 'rank')}"
    else:
        whose = f"stacks of rank {rank}"
    fresh = [entry for entry in entries if entry.standing in ("answered", "ended")]
    told = any(entry.age_s is not None for entry in fresh)
    return line(
        (whose, palette.strong),
        (f"   {age(fresh)}" if told else "", palette.text),
        ("   innermost frame first" if entries else "", palette.muted),
        (f"   {run_title(view.run)}", palette.muted),
    )


def _why_not(view: RunView) -> str:
    if view.run.state in ENDED:
        return "the run is over: no rank is left to ask"
    if view.connection != "live":
        return "the run's hub does not report, so no rank can be asked"
    return ""


def _all(entries: Sequence[RankStacks], width: int, palette: Palette) -> Block:
    found = groups(entries)
    lines: Block = []
    if len(found) > 1:
        names = [name_ranks(group.ranks) for group in found[:_LISTED]]
        room = min(max(map(len, names)), width // 2)
        for group, name in zip(found, names, strict=False):
            style = palette.text if group.frames else palette.warn
            where = clean(group.at) or clean(group.entries[0].why)
            lines.append(line((f"{clip(name, room):<{room}}  ", palette.strong), (where, style)))
        if len(found) > _LISTED:
            lines.append(line((f"… {len(found) - _LISTED} more below", palette.muted)))
        lines.append(Text())
    for group in found:
        lines += _group(group, len(entries), width, palette)
    return lines


def _group(group: Group, of: int, width: int, palette: Palette) -> Block:
    name = group_name(group, of)
    if not group.frames:
        body = wrapped(clean(why(group)), width, palette.warn, indent=2)
        return [heading(name, width, palette), *body, Text()]
    other = sum(len(entry.threads) + entry.left_out - 1 for entry in group.entries)
    note = f"{plural(other, 'other thread')}: see the rank's own page" if other else ""
    frames = _frames(group.frames, group.theirs, palette)
    return [heading(name, width, palette, note), *frames, Text()]


def _one(entry: RankStacks, width: int, palette: Palette) -> Block:
    lines: Block = []
    if entry.standing != "answered":
        lines += wrapped(clean(why(Group((entry,)))), width, palette.warn)
        if entry.threads:
            lines.append(line((f"before, {age([entry])}:", palette.muted)))
        lines.append(Text())
    for thread in entry.threads:
        lines.append(heading(clean(thread_name(thread)), width, palette))
        lines += [*_frames(thread.frames, thread.theirs, palette), Text()]
    if entry.left_out:
        lines.append(line((f"… {plural(entry.left_out, 'more thread')}", palette.muted)))
    return lines


def _frames(frames: Sequence[str], theirs: int | None, palette: Palette) -> Block:
    """Innermost first; the user's innermost frame is highlighted."""
    lines = [
        line(
            ("▸ " if index == theirs else "  ", palette.accent),
            *_frame(frame, palette.strong if index == theirs else palette.muted, palette),
        )
        for index, frame in enumerate(frames)
    ]
    return lines[::-1]


def _frame(frame: str, style: Style, palette: Palette) -> list[tuple[str, Style]]:
    """`file:line`, with the function's name readable beside it."""
    at, space, function = clean(frame).rpartition(" ")
    return [(at + space, style), (function, palette.text if style == palette.muted else style)]
