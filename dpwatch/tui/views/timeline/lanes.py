"""The last steps as lanes: what each rank did when, on a common clock. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.style import Style

from dpwatch.run.derive.timeline import Gap, Stretch, exposed_share, gaps, stretches
from dpwatch.run.diagnose.comm_bound import WORTH_SAYING
from dpwatch.run.model.snapshot import LaneSteps
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.bars import segment_style
from dpwatch.tui.draw.palette import COMM_KINDS, PHASE_KINDS, PHASE_NAMES, WAITING, Kind, Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import clip, fitted, left, line, right
from dpwatch.wire.messages import Step

KINDS: dict[str, Kind] = {**PHASE_KINDS, "exposed": COMM_KINDS["exposed"], "waiting": WAITING}
_EXPOSED_TOLD = "exposed: waits for communication"
LABEL, FIGURES = 16, 19
"""Cells before a lane and after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The time on screen, on the first host's clock."""

    start_ns: int
    end_ns: int

    @property
    def span_ns(self) -> int:
        """How long it is."""
        return self.end_ns - self.start_ns

    def cell(self, at_ns: float, cells: int) -> int:
        """The cell of a time; outside 0 … cells - 1 if it is not on screen."""
        return int((at_ns - self.start_ns) * cells // max(self.span_ns, 1))


def lane_cells(width: int) -> int:
    """Cells of a lane's bar."""
    return max(width - LABEL - FIGURES, 10)


def within(lane: LaneSteps, window: Window, shift_ns: int) -> list[Step]:
    """The lane's steps that are at least partly on screen."""
    return [
        step
        for step in lane.steps
        if step.end_ns + shift_ns > window.start_ns and step.start_ns + shift_ns < window.end_ns
    ]


def lane_bar(
    lane: LaneSteps,
    window: Window,
    shift_ns: int,
    cells: int,
    palette: Palette,
    *,
    shares: bool = False,
) -> Text:
    """A lane as coloured cells, each for what takes its middle; `▏` where a step begins.

    Gaps between steps say how many were not measured. `shares`: its device shares a process with
    others.
    """
    steps = within(lane, window, shift_ns)
    parts: list[Stretch | Gap] = [part for step in steps for part in stretches(step, shares=shares)]
    parts += gaps(lane.steps)
    parts.sort(key=lambda part: part.start_ns)
    starts = {window.cell(step.start_ns + shift_ns, cells) for step in steps}
    begins = [part.start_ns + shift_ns for part in parts]
    kinds: list[Kind | Gap | None] = []
    for index in range(cells):
        middle = window.start_ns + (index + 0.5) * window.span_ns / cells
        found = bisect_right(begins, middle) - 1
        part = parts[found] if found >= 0 else None
        if part is None or middle >= part.end_ns + shift_ns:
            kinds.append(None)
        else:
            kinds.append(part if isinstance(part, Gap) else KINDS[part.name])
    return _cells(kinds, starts, palette)


def _cells(kinds: Sequence[Kind | Gap | None], starts: set[int], palette: Palette) -> Text:
    """Runs of one kind have its letter if they are wide enough."""
    bar = Text()
    index = 0
    while index < len(kinds):
        end = index + 1
        while end < len(kinds) and kinds[end] is kinds[index] and end not in starts:
            end += 1
        bar.append_text(_run(kinds[index], end - index, index in starts, palette))
        index = end
    return bar


def _run(kind: Kind | Gap | None, length: int, begins: bool, palette: Palette) -> Text:
    if isinstance(kind, Gap):
        told = f" {kind.steps} step{'s' if kind.steps > 1 else ''} "
        told = told.center(length, "─") if len(told) < length else "─" * length
        return Text(told, palette.faint)
    if kind is None:
        return Text("·" * length if palette.mono else " " * length, palette.faint)
    if palette.mono:
        text = ("|" if begins else "") + kind.letter * length
        return Text(text[:length], palette.text)
    text = "▏" if begins else ""
    text += kind.letter if length >= 3 else ""
    return Text(text.ljust(length)[:length], segment_style(kind))


def lane_line(
    head: Text, lane: LaneSteps | None, bar: Text, steps: Sequence[Step], palette: Palette
) -> Text:
    """Name, bar, the last step's time and the share of exposed communication."""
    if lane is None or not lane.steps:
        return line(head, (left("no step yet", bar.cell_len), palette.faint))
    took = fmt.millis((steps[-1].end_ns - steps[-1].start_ns) / 1e6) if steps else fmt.UNKNOWN
    share = exposed_share(steps)
    return line(
        head,
        bar,
        (right(took, 10), palette.text),
        (right(fmt.share(share), 9), _exposed_style(share, palette)),
    )


def _exposed_style(share: float | None, palette: Palette) -> Style:
    """A warning only from the diagnosis' own threshold on."""
    if share is None:
        return palette.muted
    return palette.warn if share >= WORTH_SAYING else palette.text


def step_line(step: Step | None, width: int, palette: Palette, *, shares: bool = False) -> Text:
    """A step's figures, each after its letter; without its number if room is short."""
    if step is None:
        return Text()
    figures = []
    for name in (*PHASE_NAMES[:-1], "exposed"):
        ns = getattr(step, f"{name}_ns")
        figures.append((KINDS[name].letter, fmt.millis(None if ns is None else ns / 1e6)))
    if shares:
        waits = (each for each in stretches(step, shares=True) if each.name == "waiting")
        waited_ms = sum(each.end_ns - each.start_ns for each in waits) / 1e6
        known = step.idle_ns is not None
        figures.append((WAITING.letter, fmt.millis(waited_ms if known else None)))
    number = f"step {step.step}  "
    roomy = len(number) + sum(len(f"{a} {b}  ") for a, b in figures) <= width
    result = line((number if roomy else "", palette.muted))
    for letter, text in figures:
        result.append(f"{letter} ", palette.strong)
        result.append(text + ("  " if roomy else " "), palette.muted)
    return result


def tick_line(
    lane: LaneSteps | None, window: Window, shift_ns: int, width: int, palette: Palette
) -> Text:
    """The step numbers of one lane, where they begin; the figures' names above them."""
    cells = lane_cells(width)
    row = [" "] * cells
    free = 0
    for step in within(lane, window, shift_ns) if lane else ():
        text = str(step.step)
        at = max(window.cell(step.start_ns + shift_ns, cells), 0)
        if free <= at and at + len(text) <= cells:
            row[at : at + len(text)] = text
            free = at + len(text) + 1
    names = right("last step", 10) + right("exposed", 9)
    return line((left("  step", LABEL), palette.muted), ("".join(row) + names, palette.muted))


def legend(width: int, palette: Palette, *, shares: bool = False) -> Text:
    """The legend."""
    for exposed in (_EXPOSED_TOLD, "exposed"):
        result = Text()
        for name, kind in KINDS.items():
            if kind is WAITING and not shares:
                continue
            style: Style = palette.strong if palette.mono else segment_style(kind)
            result.append(kind.letter, style)
            result.append(f" {exposed if name == 'exposed' else name}  ", palette.muted)
        if result.cell_len <= width:
            break
    return fitted(result, width)


def status_line(
    window: Window | None, follows: bool, notes: Sequence[str], width: int, palette: Palette
) -> Text:
    """How much time is on screen, whether it follows, and further notes."""
    if window is None:
        return fitted(line(("no step yet", palette.muted)), width)
    where = "newest" if follows else "paused (f: follow the newest)"
    note = "".join(f" · {each}" for each in notes)
    span = fmt.millis(window.span_ns / 1e6)
    text = f"{span} on screen, {where}"
    if len(text) + len(note) > width:
        text = f"{span}, {where}"
    return fitted(line((clip(text, width), palette.muted), (note, palette.text)), width)


CAPTIONS: tuple[Callable[[], str], ...] = (
    lambda: (
        "Phases are drawn in order, with measured lengths. Time outside them is drawn before the "
        "optimizer, exposed communication at the end of backward."
    ),
    lambda: "lengths measured, positions not: other drawn before O, exposed at the end of B",
)


def caption(width: int) -> str:
    """What is measured in the picture and what is not."""
    return next((text() for text in CAPTIONS if len(text()) <= width), CAPTIONS[-1]())


def lane_name(lane_rank: int, device: str, several: bool) -> str:
    """Rank and device of a lane; only the device if there is one process."""
    name = clean(device, 14)
    return f"{lane_rank:>3} {name}" if several else f" {name}"
