"""The two lines at the top of every panel: what is being watched, and the panels' names."""

from __future__ import annotations

from rich.style import Style
from rich.text import Text

from dpwatch.hub.snapshot import Progress
from dpwatch.tui import format as fmt
from dpwatch.tui.bars import gauge
from dpwatch.tui.frame import Frame, all_diagnoses
from dpwatch.tui.palette import STATE_GLYPHS, Palette
from dpwatch.tui.text import clean, clip, fitted, line
from dpwatch.tui.words import run_title, strategy_of

PANELS = ("overview", "compare", "diagnoses", "how", "help")
"""Panels by digit: 1, 2, …"""
TITLES = {"how": "How it works"}
"""Of those that aren't called by their name."""

_GAUGE, _SHORT_GAUGE, _WIDE = 26, 13, 110
_TAB_GAP = 2


def header_line(frame: Frame, title: str, width: int, palette: Palette) -> Text:
    """Program, run, state; on the right the pause and the elapsed time."""
    view = frame.view
    state = line(
        (f"{STATE_GLYPHS.get(frame.state, '·')} {frame.state}", palette.state(frame.state))
    )
    name = line((f" {clean(title, 20)} ", palette.accent + Style(bold=True)))
    right_side = _right_side(frame, palette)
    room = width - name.cell_len - state.cell_len - right_side.cell_len - 4
    run = line((clip(run_title(view.run), room) if view else "no run", palette.strong))
    start = line(name, (" ", palette.text), run, ("  ", palette.text), state)
    return line(fitted(start, width - right_side.cell_len), right_side)


def _right_side(frame: Frame, palette: Palette) -> Text:
    view = frame.view
    result = Text(end="")
    if frame.trouble:
        result.append(" NO MORE DATA ", palette.badge)
        result.append(" ")
    if frame.paused:
        behind = ""
        if view and frame.newest_steps is not None and frame.newest_steps > view.run.steps:
            behind = f" {frame.newest_steps - view.run.steps} steps behind"
        result.append(f" PAUSED{behind} ", palette.badge)
        result.append(" ")
    if view is not None:
        result.append(f"{fmt.clock(view.elapsed_s)} ", palette.muted)
    return result


def panel_title(name: str) -> str:
    """What a panel is called on the screen."""
    return TITLES.get(name, name.capitalize())


def session_line(frame: Frame, width: int, palette: Palette) -> Text | None:
    """How far a session of several strategies has got, else its notice; None when all is said."""
    seen = frame.snapshot
    if not seen.runs:
        return None
    notice = clean(seen.notice)
    if seen.progress is not None and _goes_on(seen.progress):
        now = seen.runs[0].run
        working = now.state in ("starting", "running")
        part = min(now.steps / now.total_steps, 1.0) if working and now.total_steps else 0.0
        head = _progress_head(seen.progress, part, "", width, palette)
        within = f"step {now.steps} of {now.total_steps}" if part else ""
        rest = line((notice, palette.strong)) if notice else _rest(seen.progress, within, palette)
        return fitted(line(head, rest), width)
    if notice:
        return line((f" {clip(notice, width - 2)}", palette.warn))
    if seen.search is not None and _goes_on(seen.search):
        head = _progress_head(seen.search, 0.0, "largest batch, ", width, palette)
        return fitted(line(head, _rest(seen.search, seen.search.within, palette)), width)
    return None


def _goes_on(progress: Progress) -> bool:
    return progress.done < len(progress.names)


def _progress_head(
    progress: Progress, part: float, what: str, width: int, palette: Palette
) -> Text:
    """A gauge and a count; `part` is how much of the one at work is done."""
    number = len(progress.names)
    cells = _GAUGE if width >= _WIDE else _SHORT_GAUGE
    bar = gauge((progress.done + part) / number, cells, palette, palette.accent)
    count = f" {what}{progress.done + 1} of {number}: "
    return line((" ", palette.text), bar, (count, palette.muted))


def _rest(progress: Progress, within: str, palette: Palette) -> Text:
    """What is at work, how far it is, and what comes after it."""
    now, *then = (clean(name, 24) for name in progress.names[progress.done :])
    result = line((now, palette.strong), (f", {within}" if within else "", palette.text))
    if then:
        result.append("  then " + ", ".join(then), palette.muted)
    return result


def nav_line(frame: Frame, panel: str, width: int, palette: Palette) -> Text:
    """Panel names by digit, and the runs to switch between. Clicks read the style's meta."""
    tabs = Text(" ", no_wrap=True, end="")
    found = len(all_diagnoses(frame.snapshot))
    for digit, name in enumerate(PANELS, 1):
        active = name == panel or (name == "overview" and panel in ("rank", "waiting"))
        target = Style(meta={"panel": name})
        label = panel_title(name) + (f" ({found})" if name == "diagnoses" and found else "")
        style = palette.strong + Style(underline=True) if active else palette.muted
        tabs.append(f"{digit} ", palette.accent + target)
        tabs.append(label, style + target)
        tabs.append(" " * _TAB_GAP, target)
    runs = _run_chips(frame, width - tabs.cell_len - 1, palette)
    return line(fitted(tabs, width - runs.cell_len - 1), runs, (" ", palette.text))


def _run_chips(frame: Frame, room: int, palette: Palette) -> Text:
    """The runs' strategies, oldest first, the one on screen marked; else a count."""
    views = list(reversed(frame.snapshot.runs))
    if len(views) < 2:
        return Text(end="")
    chips = line(("runs ", palette.muted))
    place = 0
    for index, view in enumerate(views):
        target = Style(meta={"run": view.run.run_id})
        name = strategy_of(view.run)
        if view.run.run_id == frame.run_id:
            place = index + 1
            chips.append(f"[{name}]", palette.strong + target)
        else:
            chips.append(f" {name} ", palette.muted + target)
    if chips.cell_len <= room:
        return chips
    count = f"run {place} of {len(views)}"
    return line((count, palette.muted)) if len(count) <= room else Text(end="")
