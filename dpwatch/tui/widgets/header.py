"""The lines at the top of every view: the run on screen, and the views' names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rich.style import Style

from dpwatch.run.model.snapshot import Progress
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.bars import gauge
from dpwatch.tui.draw.palette import STATE_GLYPHS, Palette
from dpwatch.tui.draw.sentences import run_title, strategy_names
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import Part, clip, fitted, line
from dpwatch.tui.snapshots.frame import Frame, all_diagnoses
from dpwatch.tui.widgets.view import View, digit

_NOW_S = 0.05
"""Anything younger than this counts as current."""
_GAUGE, _SHORT_GAUGE, _WIDE = 26, 13, 110
_TABS = ((99, 2), (8, 2), (8, 1), (0, 2), (0, 1))
"""How the views' names are written, best first: how many letters are written in full, and how many
blanks are between names.
"""


def header_line(frame: Frame, title: str, width: int, palette: Palette) -> Text:
    """Program, run, state; on the right the pause and the elapsed time."""
    view = frame.view
    silent = f" for {fmt.silence(frame.silent_s)}" if frame.silent_s is not None else ""
    word = f"{STATE_GLYPHS.get(frame.state, '·')} {frame.state}{silent}"
    state = line((word, palette.state(frame.state)))
    name = line((f" {clean(title, 20)} ", palette.accent + Style(bold=True)))
    right_side = _right_side(frame, width, palette)
    if width < _RUNS_IN_BAR and (number := _run_number(frame)):
        right_side = line((f"run {number}  ", palette.muted), right_side)
    room = width - name.cell_len - state.cell_len - right_side.cell_len - 4
    where = f" on {clip(clean(view.ssh_host), room // 3)}" if view and view.ssh_host else ""
    what = clip(run_title(view.run), room - len(where)) if view else "no run"
    run = line((what, palette.strong), (where, palette.muted))
    start = line(name, (" ", palette.text), run, ("  ", palette.text), state)
    return line(fitted(start, width - right_side.cell_len), right_side)


def _run_number(frame: Frame) -> str:
    """The number of the run on screen, the oldest being the first; "" if there is only one."""
    ids = [view.run.run_id for view in reversed(frame.snapshot.runs)]
    many = len(ids) > 1 and frame.run_id in ids
    return f"{ids.index(frame.run_id or '') + 1}/{len(ids)}" if many else ""


def _right_side(frame: Frame, width: int, palette: Palette) -> Text:
    view = frame.view
    result = Text()
    if frame.interval_s is not None:
        result.append(f"every {frame.interval_s:g} s ", palette.muted)
    if frame.trouble:
        result.append(" NO MORE DATA ", palette.badge)
        result.append(" ")
    if frame.paused:
        result.append(f" PAUSED {_behind(frame, width)}".rstrip() + " ", palette.badge)
        result.append(" ")
    if view is not None:
        now = frame.newest or view  # the clock goes on while the rest is paused
        result.append(f"{fmt.clock(now.elapsed_s)} ", palette.muted)
    return result


def _behind(frame: Frame, width: int) -> str:
    """The age of what is on screen while paused."""
    view, said = frame.view, []
    if view and frame.newest_steps is not None and frame.newest_steps > view.run.steps:
        said.append(f"{frame.newest_steps - view.run.steps} steps behind")
    if frame.ago_s is not None and frame.ago_s >= _NOW_S:
        ago = f"{fmt.age(frame.ago_s)} ago"
        said = [*said, ago] if width >= _WIDE else [ago]
    if frame.edge:
        said.append(f"{frame.edge} kept" if frame.edge == "oldest" else frame.edge)
    return ", ".join(said)


def session_line(frame: Frame, width: int, palette: Palette) -> Text | None:
    """Progress of a session of several strategies, else its notice; None for neither."""
    seen = frame.snapshot
    if not seen.runs:
        return None
    notice = " · ".join(clean(each) for each in seen.notice.splitlines())
    if seen.progress is not None and _goes_on(seen.progress):
        now = seen.runs[0].run
        working = now.state in ("starting", "running")
        part = min(now.steps / now.total_steps, 1.0) if working and now.total_steps else 0.0
        head = _progress_head(seen.progress, part, "", width, palette)
        within = f"step {now.steps} of {now.total_steps}" if part else ""
        rest = line((notice, palette.strong)) if notice else _rest(seen.progress, within, palette)
        return fitted(line(head, rest), width)
    if not notice and frame.view is not None:
        notice = clean(frame.view.run.note)
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
    """A gauge and a count; `part` is how much of the current one is done."""
    number = len(progress.names)
    cells = _GAUGE if width >= _WIDE else _SHORT_GAUGE
    bar = gauge((progress.done + part) / number, cells, palette, palette.accent)
    count = f" {what}{progress.done + 1} of {number}: "
    return line((" ", palette.text), bar, (count, palette.muted))


def _rest(progress: Progress, within: str, palette: Palette) -> Text:
    """What is running, its progress, and what comes next."""
    now, *then = (clean(name, 24) for name in progress.names[progress.done :])
    result = line((now, palette.strong), (f", {within}" if within else "", palette.text))
    if then:
        result.append("  then " + ", ".join(then), palette.muted)
    return result


_RUNS_IN_BAR = 100
"""From this width on the line of views has room for the runs, or for the current one's number."""


def nav_line(
    frame: Frame, views: Sequence[View], active: str, width: int, palette: Palette
) -> Text:
    """The views by digit, and the runs to switch between. Clicks read the style's meta."""
    found = len(all_diagnoses(frame.snapshot))
    bars = _tab_bars(tuple(views), active, found, palette)
    for runs in _run_choices(frame, palette):
        for tabs in bars:
            if tabs.cell_len + runs.cell_len + 1 <= width:
                rest = width - runs.cell_len - 1
                return line(fitted(tabs, rest), runs, (" ", palette.text))
    return fitted(bars[-1], width)


@lru_cache(maxsize=4)
def _tab_bars(
    views: tuple[View, ...], active: str, found: int, palette: Palette
) -> tuple[Text, ...]:
    """The views' names in each way there is; read only."""
    return tuple(_tabs(views, active, found, most, gap, palette) for most, gap in _TABS)


def _tabs(
    views: Sequence[View], active: str, found: int, most: int, gap: int, palette: Palette
) -> Text:
    """Digits and names; the current view is in brackets, which take no extra room."""
    tabs: list[Part] = []
    edge = " "
    for index, view in enumerate(views):
        here = view.name == active
        target = Style(meta={"panel": view.name})
        label = view.title if len(view.title) <= most else view.short
        if view.name == "alerts" and found:
            label += f" ({found})" if most else f" {found}"
        tabs.append((f"{edge[:-1]}{'[' if here else edge[-1:]}", palette.strong + target))
        tabs.append((f"{digit(index)} ", palette.accent + target))
        tabs.append((label, (palette.strong if here else palette.muted) + target))
        edge = f"{']' if here else ' '}{' ' * (gap - 1)}"
    return line(*tabs, (edge[:1].rstrip(), palette.strong))


def _run_choices(frame: Frame, palette: Palette) -> list[Text]:
    """The runs' strategies, oldest first, the current one marked; if shorter: its number."""
    views = list(reversed(frame.snapshot.runs))
    if len(views) < 2:
        return [Text()]
    chips = line(("runs ", palette.muted))
    names = strategy_names(views)
    for view in views:
        target = Style(meta={"run": view.run.run_id})
        name = names[view.run.run_id]
        if view.run.run_id == frame.run_id:
            chips.append(f"[{name}]", palette.strong + target)
        else:
            chips.append(f" {name} ", palette.muted + target)
    number = _run_number(frame)
    shorter = (f"run {number.replace('/', ' of ')}", number)
    return [chips, *(line((each, palette.muted)) for each in shorter), Text()]
