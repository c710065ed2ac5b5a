"""Findings: active ones, then resolved ones, each with its times. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dpwatch.run.model.snapshot import ENDED, Alert, Diagnosis, Run, RunView, Snapshot
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.layout import Block, heading
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.sentences import run_title
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, line, wrapped
from dpwatch.tui.snapshots.frame import all_diagnoses
from dpwatch.tui.views.alerts.findings import diagnosis_lines, no_diagnosis_lines, who


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A finding to list, with its run; one of `now` and `over` is set.

    Attributes:
        again: Whether another run above has the same finding.
    """

    view: RunView
    now: Diagnosis | None = None
    over: Alert | None = None
    began_s: float | None = None
    again: bool = False

    @property
    def found(self) -> Diagnosis | Alert | None:
        """What it is about."""
        return self.now or self.over

    @property
    def ranks(self) -> Sequence[int]:
        """The ranks concerned."""
        return self.found.ranks if self.found else ()

    @property
    def section(self) -> int:
        """Its group: active, active until its run ended, or resolved."""
        return 2 if self.over else int(self.view.run.state in ENDED)


_SECTIONS = ("", "When their run ended", "Resolved, latest first")


def entries(snapshot: Snapshot) -> list[Entry]:
    """All runs' findings: active, active until the run ended, resolved (latest first).

    The same finding in several runs is listed together.
    """
    holding = [
        Entry(view=view, now=found, began_s=_began(view.run, found))
        for view, found in all_diagnoses(snapshot)
    ]
    over = [
        Entry(view=view, over=alert, began_s=alert.began_s)
        for view in snapshot.runs
        for alert in view.run.alerts
        if alert.ended_s is not None
    ]
    over.sort(key=lambda entry: -(entry.over.ended_s or 0.0) if entry.over else 0.0)
    return _together(sorted([*holding, *over], key=lambda entry: entry.section))


def _together(found: list[Entry]) -> list[Entry]:
    """Each finding of one run followed by the same of other runs."""
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in found:
        what = entry.found
        key = entry.section, what and what.kind, what and what.severity
        groups.setdefault(key, []).append(entry)
    return [
        replace(entry, again=entry.view is not group[0].view)
        for group in groups.values()
        for entry in group
    ]


def _began(run: Run, found: Diagnosis) -> float | None:
    """When an active finding began, if its run's history has it."""
    return next(
        (
            alert.began_s
            for alert in run.alerts
            if alert.ended_s is None and (alert.kind, alert.ranks) == (found.kind, found.ranks)
        ),
        None,
    )


def alert_lines(
    found: Sequence[Entry], snapshot: Snapshot, cursor: int, width: int, palette: Palette
) -> tuple[Block, list[int]]:
    """All of them, and the line at which each begins."""
    if not found:
        return no_diagnosis_lines(snapshot.runs, width, palette), []
    lines: Block = []
    tops: list[int] = []
    if found[0].over is not None:
        lines.append(line(("✓ ", palette.good), ("no alert is active", palette.text)))
    section = min(found[0].section, 1)  # the first group needs no heading, unless it is resolved
    for index, entry in enumerate(found):
        chosen, name = index == cursor, run_title(entry.view.run)
        headed, section = entry.section != section, entry.section
        if lines and (headed or not entry.again):
            lines.append(Text())
        if headed:
            lines.append(heading(_SECTIONS[entry.section], width, palette))
        tops.append(len(lines))
        if entry.again and not chosen:
            lines.append(_also(entry, name, palette))
        elif entry.now is not None:
            lines += diagnosis_lines(name, entry.now, width, palette, chosen=chosen)
            if entry.began_s is not None:
                lines.insert(tops[-1] + 1, _times(entry, entry.began_s, snapshot.wall_s, palette))
        elif entry.over is not None:
            lines += _over(entry.over, name, snapshot.wall_s, width, palette, chosen=chosen)
    return [fitted(each, width) for each in lines], tops


def _also(entry: Entry, name: str, palette: Palette) -> Text:
    """One line for the same finding in another run."""
    since = entry.found.since_step if entry.found else 0
    where = f"{who(entry.ranks)} · since step {since}"
    return line(("    and in ", palette.muted), (name, palette.text), (f"  {where}", palette.muted))


def _times(entry: Entry, began_s: float, wall_s: float, palette: Palette) -> Text:
    """Since when it is active."""
    lasts = f"active for {fmt.clock(max(wall_s - began_s, 0.0))}"
    if entry.section:
        lasts = "active until the run ended"
    return line((f"    began {fmt.time_of_day(began_s)}, {lasts}", palette.muted))


def _over(
    alert: Alert, name: str, wall_s: float, width: int, palette: Palette, *, chosen: bool
) -> Block:
    """Two lines and the text of a resolved finding."""
    ended_s = alert.ended_s if alert.ended_s is not None else wall_s
    head = line(
        ("▸ " if chosen else "  ", palette.accent),
        (f"✓ {clean(alert.kind, 40).replace('_', ' ')}", palette.strong),
        (f"  was {clean(alert.severity, 12)}", palette.muted),
        (f"  {who(alert.ranks)} · since step {alert.since_step}", palette.text),
        (f" · {name}", palette.muted),
    )
    lasted, ago = fmt.clock(max(ended_s - alert.began_s, 0)), fmt.clock(max(wall_s - ended_s, 0))
    began, ended = fmt.time_of_day(alert.began_s), fmt.time_of_day(ended_s)
    times = f"    {began} to {ended}: lasted {lasted}, resolved {ago} ago"
    body = wrapped(clean(alert.text, 2000), min(width, 110) - 2, palette.muted, indent=4)
    return [head, line((times, palette.muted)), *body]
