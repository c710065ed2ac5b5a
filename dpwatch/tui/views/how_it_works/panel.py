"""How the current run's strategy works, with this run's measurements of each step."""

from __future__ import annotations

from collections.abc import Sequence

from dpwatch.run.derive.collective_totals import per_rank
from dpwatch.run.derive.comparison import HOST, devices, figures
from dpwatch.run.model.snapshot import Rank, Run
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.bars import stacked
from dpwatch.tui.draw.layout import Block, beside, heading
from dpwatch.tui.draw.palette import MEMORY_KINDS, Palette
from dpwatch.tui.draw.sentences import STRATEGIES, collective_name, plural, strategy_of
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, left, line, right, wrapped
from dpwatch.tui.snapshots.frame import Frame
from dpwatch.tui.views.how_it_works.diagrams import WIDTH, calls, diagram, shape_of, where
from dpwatch.tui.views.how_it_works.steps import SCHEMES, Scheme, Step
from dpwatch.tui.widgets.base import Scrolling, palette_of

_BESIDE_WIDTH = 140
_MOST_ROWS = 8
_STEPS_WIDTH = 96
_FIGURES = 34
"""Cells of a step's bytes and time."""
_ALWAYS_TOLD = ("params", "grads", "optimizer")
_TELL_ALL = 96
_HELD = ("params", "grads", "optimizer", "buffers", "gathered")


class How(Scrolling):
    """How the run's strategy works."""

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """All of it; it scrolls."""
        return how_lines(frame, width, palette_of(self))


def how_lines(frame: Frame, width: int, palette: Palette) -> Block:
    """The idea, the diagram, the steps with their figures, and what each device keeps."""
    view = frame.view
    if view is None:
        return [line(("no run to explain yet", palette.muted))]
    run = view.run
    scheme = SCHEMES.get(run.strategy) or _from_what_it_sends(run)
    told = STRATEGIES.get(run.strategy, "unknown strategy: what it sends, as measured")
    head = line(
        (strategy_of(run), palette.accent),
        (f"  {told}  ", palette.strong),
        (f"{plural(len(devices(run)), 'device')}, step {run.steps}", palette.muted),
    )
    lines = [head, *wrapped(scheme.idea, min(width, 120), palette.text), Text()]
    picture = diagram(scheme.shape, run, width, palette)
    if width >= _BESIDE_WIDTH:
        room = width - WIDTH - 2
        lines += beside([picture, _steps(scheme, run, room, palette)], gap=2)
    else:
        lines += [*picture, Text(), *_steps(scheme, run, width, palette)]
    lines += [Text(), *_kept(run, width, palette)]
    return [fitted(each, width) for each in lines]


def _from_what_it_sends(run: Run) -> Scheme:
    """Steps derived from a run's own copies and collectives, in no particular order."""
    copies = dict.fromkeys(clean(each.kind, 24) for each in run.transfers)
    ops = dict.fromkeys(each.op for each in run.collectives)
    steps = [
        *(Step(title=kind, where="between devices", text="", transfers=(kind,)) for kind in copies),
        *(Step(title=collective_name(op), where="all ranks", text="", op=op) for op in ops),
        *(
            Step(title=phase, where="every device", text="", phase=phase)
            for phase in ("forward", "backward", "optimizer")
        ),
    ]
    idea = "Its algorithm is not known: these are the measured operations, in no particular order."
    return Scheme(shape=shape_of(run), idea=idea, steps=tuple(steps))


def _steps(scheme: Scheme, run: Run, width: int, palette: Palette) -> Block:
    """Two lines per step: its title with its figures, and its sentence."""
    width = min(width, _STEPS_WIDTH)
    note = "bytes of all devices; ms of the slowest"
    lines = [heading("One step", width, palette, note)]
    for number, step in enumerate(scheme.steps, 1):
        moved, took = _moved(step, run), _took(step, run)
        room = width - _FIGURES - 3
        title = line((f"{number}. ", palette.muted), (step.title, palette.strong))
        title.append(f"  {step.where}", palette.muted)
        moved_style = palette.text if moved != fmt.UNKNOWN else palette.muted
        took_style = palette.text if took != fmt.UNKNOWN else palette.muted
        lines.append(
            line(
                fitted(title, room),
                (right(moved, 15), moved_style),
                (right(took, _FIGURES - 15), took_style),
            )
        )
        if text := _sentence(step, run):
            lines += wrapped(text, width - 3, palette.muted, indent=3)
    return [*lines, *_communication(run, width, palette)]


def _communication(run: Run, width: int, palette: Palette) -> Block:
    """How much time communication takes, and how much of it compute waits for."""
    found = figures(run)
    if not run.collectives and not run.transfers:
        return []
    text = (
        f"Communication takes {fmt.millis(found.comm_ms)} per step; compute waits "
        f"{fmt.millis(found.exposed_ms)} for it (each on the device with the most)."
    )
    return wrapped(text, width, palette.text)


def _sentence(step: Step, run: Run) -> str:
    """The step's sentence, and how many calls its collective made."""
    told = [
        f"{calls(each.count)} calls among {each.ranks} ranks{where(each)}, half of them within "
        f"{fmt.millis(each.p50_ms)}"
        for each in per_rank(run)
        if each.op == step.op
    ]
    return "; ".join(text for text in (step.text, *told) if text)


def _moved(step: Step, run: Run) -> str:
    """Bytes copied by all devices, or each rank's payload."""
    if step.transfers:
        sizes = [t.bytes_per_step for t in run.transfers if clean(t.kind, 24) in step.transfers]
        return fmt.size(sum(sizes)) if sizes else fmt.UNKNOWN
    if step.op:
        found = [each.hands_in for each in per_rank(run) if each.op == step.op]
        return f"{fmt.size(sum(found))}/rank" if found else fmt.UNKNOWN
    return ""


def _took(step: Step, run: Run) -> str:
    """Total time of the copies, or of the phase on the slowest device."""
    if step.transfers:
        times = [t.ms_per_step for t in run.transfers if clean(t.kind, 24) in step.transfers]
        return fmt.millis(sum(times)) if times else fmt.UNKNOWN
    if step.phase:
        times = [
            value
            for rank in run.ranks
            if (value := getattr(rank.phases_ms, step.phase)) is not None
        ]
        return fmt.millis(max(times, default=None))
    found = [each.exposed_ms_per_step for each in run.collectives if each.op == step.op]
    known = [each for each in found if each is not None]
    return f"{fmt.millis(sum(known))} exposed" if known else fmt.UNKNOWN


def _kept(run: Run, width: int, palette: Palette) -> Block:
    """What each device holds between steps, on one scale."""
    rows = run.ranks[:_MOST_ROWS]
    totals = [_held_bytes(rank) for rank in rows]
    full = max((total for total in totals if total is not None), default=0)
    told = [key for key in _HELD if key in _ALWAYS_TOLD or (width >= _TELL_ALL and _any(rows, key))]
    room = max(width - 10 - 12 - 14 * len(told), 12)
    lines = [heading("What each device keeps between steps", width, palette)]
    for rank, total in zip(rows, totals, strict=True):
        kept = {name: getattr(rank.memory.at_step_end, name) for name in _HELD}
        name = "the host" if rank.device == HOST else clean(rank.device, 9)
        figures = "  ".join(f"{MEMORY_KINDS[key].letter} {fmt.size(kept[key])}" for key in told)
        lines.append(
            line(
                (left(name, 10), palette.text),
                stacked(kept, MEMORY_KINDS, room, palette, total=full),
                (right(fmt.size(total), 12), palette.strong),
                (f"  {figures}", palette.muted),
            )
        )
    if len(run.ranks) > len(rows):
        lines.append(line((f"and {len(run.ranks) - len(rows)} more", palette.muted)))
    return lines


def _any(rows: Sequence[Rank], category: str) -> bool:
    return any(getattr(rank.memory.at_step_end, category) for rank in rows)


def _held_bytes(rank: Rank) -> int | None:
    kept = [getattr(rank.memory.at_step_end, name) for name in _HELD]
    known = [value for value in kept if value is not None]
    return sum(known) if known else None
