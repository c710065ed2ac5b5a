"""What was found wrong: what holds now, then what is over, each with its times. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from dpwatch.hub.snapshot import Alert, Diagnosis, Run, RunView, Snapshot
from dpwatch.tui import format as fmt
from dpwatch.tui.blocks import Block, heading
from dpwatch.tui.diagnoses import diagnosis_lines, no_diagnosis_lines, who
from dpwatch.tui.frame import all_diagnoses
from dpwatch.tui.palette import Palette
from dpwatch.tui.text import clean, fitted, line, wrapped
from dpwatch.tui.words import run_title

_ENDED = ("finished", "failed", "lost")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A finding to list, with its run; one of `now` and `over` is set."""

    view: RunView
    now: Diagnosis | None = None
    over: Alert | None = None
    began_s: float | None = None

    @property
    def ranks(self) -> Sequence[int]:
        """Whom it concerns."""
        found = self.now or self.over
        return found.ranks if found else ()


def entries(snapshot: Snapshot) -> list[Entry]:
    """What holds in any run, worst first; then what is over, the latest end first."""
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
    return holding + over


def _began(run: Run, found: Diagnosis) -> float | None:
    """When a finding that holds began, where its run's history has it."""
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
    """All of them, and the line each begins at."""
    if not found:
        return no_diagnosis_lines(snapshot.runs, width, palette), []
    lines: Block = []
    tops: list[int] = []
    if found[0].now is None:
        lines += [line(("✓ ", palette.good), ("nothing holds now", palette.text)), Text(end="")]
    for index, entry in enumerate(found):
        chosen = index == cursor
        if entry.over is not None and (index == 0 or found[index - 1].now is not None):
            lines.append(heading("Over", width, palette, "the latest first"))
        tops.append(len(lines))
        if entry.now is not None:
            lines += _holding(entry, entry.now, snapshot.wall_s, width, palette, chosen=chosen)
        elif entry.over is not None:
            lines += _over(entry.view, entry.over, snapshot.wall_s, width, palette, chosen=chosen)
    return [fitted(each, width) for each in lines], tops


def _holding(
    entry: Entry, found: Diagnosis, wall_s: float, width: int, palette: Palette, *, chosen: bool
) -> Block:
    lines = diagnosis_lines(entry.view, found, width, palette, chosen=chosen)
    if entry.began_s is None:
        return lines
    lasts = f"holds for {fmt.clock(max(wall_s - entry.began_s, 0.0))}"
    if entry.view.run.state in _ENDED:
        lasts = "held until the run ended"
    times = line((f"    began {_time(entry.began_s)}, {lasts}", palette.muted))
    return [lines[0], times, *lines[1:]]


def _over(
    view: RunView, alert: Alert, wall_s: float, width: int, palette: Palette, *, chosen: bool
) -> Block:
    """Two lines and the text of what does not hold any more."""
    ended_s = alert.ended_s if alert.ended_s is not None else wall_s
    head = line(
        ("▸ " if chosen else "  ", palette.accent),
        (f"✓ {clean(alert.kind, 40).replace('_', ' ')}", palette.strong),
        (f"  was {clean(alert.severity, 12)}", palette.muted),
        (f"  {who(alert.ranks)} · since step {alert.since_step}", palette.text),
        (f" · {run_title(view.run)}", palette.muted),
    )
    lasted, ago = fmt.clock(max(ended_s - alert.began_s, 0)), fmt.clock(max(wall_s - ended_s, 0))
    times = f"    {_time(alert.began_s)} to {_time(ended_s)}: lasted {lasted}, over since {ago}"
    body = wrapped(clean(alert.text, 2000), min(width, 110) - 2, palette.muted, indent=4)
    return [head, line((times, palette.muted)), *body, Text(end="")]


def _time(wall_s: float) -> str:
    """A moment by this machine's clock."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(wall_s))
    except (OverflowError, ValueError, OSError):
        return fmt.UNKNOWN
