"""The upper part of the overview: run facts, loss, device 0 against the rest, diagnoses."""

from __future__ import annotations

from functools import lru_cache

from dpwatch.run.derive.comparison import (
    exposed_share,
    largest,
    others_median,
    peak_bytes,
    traffic_bytes,
)
from dpwatch.run.model.snapshot import SEVERITIES, Curve, Diagnosis, MemoryUse, Run, RunView
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.bar_segments import memory_parts
from dpwatch.tui.draw.bars import gauge, stacked
from dpwatch.tui.draw.layout import Block, beside, boxed, facts
from dpwatch.tui.draw.palette import MEMORY_KINDS, SEVERITY_GLYPHS, TRAFFIC_KINDS, Palette
from dpwatch.tui.draw.plot import Series, plot, sparkline
from dpwatch.tui.draw.sentences import (
    STRATEGIES,
    balance_sentence,
    devices_of,
    layout_of,
    odd_states,
    strategy_of,
    uneven,
)
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import Part, fitted, line, wrapped
from dpwatch.tui.snapshots.frame import Frame, worst_first

CARDS_WIDTH, CARDS_HEIGHT = 118, 32
"""Terminals of at least this size show cards, smaller ones a few dense lines."""
_CARD_LINES = 8
_AROUND = 8
"""Lines of the overview that are neither summary nor rows: view and column names, legend."""

_SEVERITY = max(map(len, SEVERITIES))

FEWEST, MOST = 4, 12
"""The least (if there are as many) and the most lines for findings."""


@lru_cache(maxsize=4)  # layout, paint and the table below ask for the same lines
def summary_lines(frame: Frame, width: int, screen_height: int, palette: Palette) -> Block:
    """The run on screen, `width` cells wide; the height follows from the screen's."""
    view = frame.view
    if view is None:
        return []
    roomy = width >= CARDS_WIDTH and screen_height >= CARDS_HEIGHT
    upper = _cards(view, width, palette) if roomy else _dense(view, width, palette)
    room = screen_height - len(upper) - len(view.run.ranks) - _AROUND
    return [fitted(each, width) for each in (*upper, *_verdict(frame, view, width, room, palette))]


def _cards(view: RunView, width: int, palette: Palette) -> Block:
    first = width * 38 // 100
    second = width * 24 // 100
    third = width - first - second - 2
    height = _CARD_LINES + 2
    loss = _loss_curve(view.history.loss, second - 4, palette)
    return beside(
        [
            boxed("Run", _run_facts(view, first - 4, palette), first, height, palette),
            boxed("Loss", [_loss(view.run, palette), *loss], second, height, palette),
            boxed("Balance", _balance(view.run, third - 4, palette), third, height, palette),
        ]
    )


@lru_cache(maxsize=4)  # in short steps not every loss is read
def _loss_curve(curve: Curve, width: int, palette: Palette) -> Block:
    series = Series(name="", curve=curve, style=palette.series[0])
    return plot([series], width, _CARD_LINES - 1, palette, label=lambda value: fmt.number(value, 3))


def _run_facts(view: RunView, width: int, palette: Palette) -> Block:
    run = view.run
    name = line((strategy_of(run), palette.strong))
    if run.strategy in STRATEGIES:
        name.append(f"  {STRATEGIES[run.strategy]}", palette.muted)
    step = line(_steps(run, palette), ("  ", palette.text))
    progress = _progress(run, min(16, width - 16 - step.cell_len), palette)
    many, where = devices_of(view)
    return facts(
        [
            ("strategy", name),
            ("model", _model(run)),
            ("devices", many),
            ("", where),
            ("processes", _processes(run, palette)),
            ("step", line(step, progress)),
            ("step time", _step_time(view, width - 11, palette)),
            ("speed", _speed(run, palette)),
        ],
        palette,
        9,
    )


def _processes(run: Run, palette: Palette) -> Text:
    odd = odd_states(run)
    return line((layout_of(run), palette.text), (f"  {odd}" if odd else "", palette.warn))


def _model(run: Run) -> str:
    if run.model.params is None:
        return fmt.UNKNOWN
    return f"{fmt.count(run.model.params)} params · {fmt.size(run.model.param_bytes)}"


def _steps(run: Run, palette: Palette) -> Text:
    total = f" / {run.total_steps}" if run.total_steps else ""
    return line((str(run.steps), palette.strong), (total, palette.text))


def _progress(run: Run, width: int, palette: Palette) -> Text:
    if not run.total_steps or width < 6:
        return Text()
    part = run.steps / run.total_steps
    bar = gauge(part, width, palette, palette.accent)
    return line(bar, (f" {fmt.share(min(part, 1.0))}", palette.muted))


def _speed(run: Run, palette: Palette) -> Text:
    words = " samples/s before" if run.state in ("hung", "stale") else " samples/s"
    return line((fmt.rate(run.samples_per_s), palette.strong), (words, palette.text))


def _step_time(view: RunView, width: int, palette: Palette) -> Text:
    """The slowest rank's median, the run's curve, and the share spent waiting for others."""
    text = line((f"{fmt.millis(_slowest_ms(view.run))}  ", palette.text))
    waits = _exposed(view.run, palette)
    room = width - text.cell_len - waits.cell_len - 2
    curve = sparkline(view.history.step_ms, min(room, 24), palette.accent)
    return line(text, curve, ("  ", palette.text), waits)


def _slowest_ms(run: Run) -> float | None:
    return largest(run, lambda rank: rank.step_ms.p50)


def _exposed(run: Run, palette: Palette) -> Text:
    """Exposed communication on the device with the most."""
    share = fmt.share(largest(run, exposed_share))
    return line(("exposed ", palette.muted), (share, palette.text))


def _loss(run: Run, palette: Palette) -> Text:
    return line(
        (fmt.number(run.loss.first), palette.text),
        (" → ", palette.muted),
        (fmt.number(run.loss.last), palette.strong),
    )


def _balance(run: Run, width: int, palette: Palette) -> Block:
    """The sentence, then device 0 and the others' median as bars on one scale."""
    off = uneven(run.balance.peak_device0_over_median) or uneven(
        run.balance.traffic_device0_over_median
    )
    lines = wrapped(balance_sentence(run), width, palette.warn if off else palette.text)[:2]
    if len(run.ranks) < 2:
        return lines
    lines += _memory_pair(*_memories(run), width, palette)
    return lines + _traffic_pair(*_traffics(run), width, palette)


def _memories(run: Run) -> tuple[MemoryUse, MemoryUse]:
    """Device 0's, and the others' median: that of a device, if one is the median."""
    first, rest = run.ranks[0].memory, others_median(run, peak_bytes)
    if rest is None:
        return first, MemoryUse()
    same = next((r for r in run.ranks[1:] if r.memory.peak_bytes == rest), None)
    return first, same.memory if same else MemoryUse(peak_bytes=round(rest))


@lru_cache(maxsize=8)  # in a running run nothing changes less often
def _memory_pair(first: MemoryUse, middle: MemoryUse, width: int, palette: Palette) -> Block:
    own, rest = first.peak_bytes, middle.peak_bytes
    full = max(own or 0, rest or 0)
    bars = [
        stacked(memory_parts(use), MEMORY_KINDS, width - 22, palette, total=full)
        for use in (first, middle)
    ]
    of = "memory peak" if first.source != "rss" else "the process's peak"
    return [
        line((f"{of} (others: their median)", palette.muted)),
        _bar_line("device 0", bars[0], fmt.size(own), palette),
        _bar_line("others", bars[1], fmt.size(rest), palette),
    ]


_Traffic = tuple[float | None, float | None, float | None]


def _traffics(run: Run) -> tuple[_Traffic, _Traffic]:
    """Total, sent and received: device 0's, and the others' medians."""
    first = run.ranks[0]
    sent, received = first.sent_bytes_per_step, first.received_bytes_per_step
    return (traffic_bytes(first), sent, received), (
        others_median(run, traffic_bytes),
        others_median(run, lambda rank: rank.sent_bytes_per_step),
        others_median(run, lambda rank: rank.received_bytes_per_step),
    )


@lru_cache(maxsize=8)
def _traffic_pair(first: _Traffic, middle: _Traffic, width: int, palette: Palette) -> Block:
    own, rest = first[0], middle[0]
    full = max(own or 0, rest or 0)
    bars = [
        stacked({"sent": s, "received": r}, TRAFFIC_KINDS, width - 22, palette, total=full)
        for _, s, r in (first, middle)
    ]
    return [
        line(("traffic a step, sent + received", palette.muted)),
        _bar_line("device 0", bars[0], fmt.size(own), palette),
        _bar_line("others", bars[1], fmt.size(rest), palette),
    ]


def _bar_line(name: str, bar: Text, figure: str, palette: Palette) -> Text:
    return line((f" {name:<9} ", palette.text), bar, (f" {figure:>9}", palette.strong))


def _dense(view: RunView, width: int, palette: Palette) -> Block:
    run = view.run
    sep = ("  ·  ", palette.faint)
    known = f"  {STRATEGIES[run.strategy]}" if run.strategy in STRATEGIES else ""
    model = f"{fmt.count(run.model.params)} params"
    devices = " ".join(devices_of(view))
    odd = odd_states(run)
    more = (odd, palette.warn) if odd else (model, palette.text)
    facts_first = line((devices, palette.text), sep, more)
    name = line((strategy_of(run), palette.strong), (known, palette.muted))
    if name.cell_len + facts_first.cell_len + 6 > width:
        name = line((strategy_of(run), palette.strong))
    first = line(name, sep, facts_first)
    step = _dense_step(view, width - 1, palette)
    off = uneven(run.balance.peak_device0_over_median)
    balance = wrapped(balance_sentence(run), width - 2, palette.warn if off else palette.text)
    return [line((" ", palette.text), each) for each in (first, step, *balance[:2])]


def _dense_step(view: RunView, width: int, palette: Palette) -> Text:
    """Progress, speed and loss, as far as there is room; then the gauge and the curve."""
    run, sep = view.run, (" · ", palette.faint)
    first = line(("step ", palette.muted), _steps(run, palette))
    rest = [
        line((fmt.millis(_slowest_ms(run)), palette.text)),
        _speed(run, palette),
        _loss_brief(view, palette),
        _exposed(run, palette),
    ]
    parts: list[Part] = [first]
    room = width - first.cell_len
    for each in rest:
        room -= each.cell_len + 3
        if room >= 0:
            parts += [sep, each]
    gauge_cells = min(room - 6, 10)
    if run.total_steps and gauge_cells >= 6:
        parts[1:1] = [(" ", palette.text), _progress(run, gauge_cells, palette)]
        room -= gauge_cells + 6
    if room >= 9:
        curve = sparkline(view.history.loss, min(room - 1, 24), palette.series[0])
        parts += [(" ", palette.text), curve]
    return line(*parts)


def _loss_brief(view: RunView, palette: Palette) -> Text:
    return line(("loss ", palette.muted), _loss(view.run, palette))


def _verdict(frame: Frame, view: RunView, width: int, room: int, palette: Palette) -> Block:
    """What matters now: an end, a silent hub, diagnoses."""
    lines = _ending(frame, view, width, palette)
    if view.run.diagnoses:
        lines += _findings(view.run, width, min(max(room - len(lines), FEWEST), MOST), palette)
    elif not lines and view.run.steps:
        lines.append(line((" ✓ ", palette.good), ("no problem found so far", palette.muted)))
    elif not lines:
        waiting = " ○ ranks have connected, no step yet"
        lines.append(line((waiting, palette.muted)))
    return lines


def _findings(run: Run, width: int, room: int, palette: Palette) -> Block:
    """One line each, worst first, in full if there is room; then how many more."""
    found = worst_first(run.diagnoses)
    shown = found if len(found) < room else found[: room - 2]
    lines: Block = []
    for index, each in enumerate(shown):
        left = room - len(lines) - (len(shown) - index - 1) - (len(shown) < len(found))
        lines += _finding(each, width, left, palette)
    if len(shown) < len(found):
        lines.append(line((f"   and {len(found) - len(shown)} more (8 Alerts)", palette.muted)))
    return lines


def _finding(found: Diagnosis, width: int, most: int, palette: Palette) -> Block:
    """Its severity and its text in at most `most` lines; `…` marks what is cut."""
    severity = clean(found.severity, 12)
    head = f" {SEVERITY_GLYPHS.get(severity, '·')} {severity.upper():<{_SEVERITY}}  "
    room = width - len(head) - 1
    text = wrapped(clean(found.text), room, palette.text)
    if len(text) > most:
        cut = text[most - 1].plain[: room - 2].rstrip()
        text = [*text[: most - 1], line((f"{cut} …", palette.text))]
    heads = [(head, palette.severity(severity)), *[(" " * len(head), palette.text)] * len(text)]
    return [line(head, each) for head, each in zip(heads, text, strict=False)]


def _ending(frame: Frame, view: RunView, width: int, palette: Palette) -> Block:
    if frame.trouble:
        return wrapped(f"✗ no more data: {frame.trouble}", width - 1, palette.bad, indent=1)[:2]
    reason = clean(view.run.reason, 300)
    if frame.state == "stale":
        silent = f" for {fmt.silence(frame.silent_s)}" if frame.silent_s is not None else ""
        text = f" ~ STALE  no report from the run's hub{silent}; showing last known values"
        return [line((text, palette.warn))]
    words = {
        "finished": "this is the last state",
        "failed": reason or "no reason given",
        "lost": reason or "its processes exited without reporting",
        "hung": reason or "ranks wait for each other, and nothing moves",
    }
    if view.run.state not in words:
        return []
    style = palette.state(view.run.state)
    glyph = {"finished": "✓", "failed": "✗", "lost": "?", "hung": "‖"}[view.run.state]
    head = f" {glyph} {view.run.state.upper()}  "
    body = wrapped(words[view.run.state], width - len(head) - 1, palette.text)[:2]
    return [line((head, style), body[0])] + [line((" " * len(head), style), b) for b in body[1:]]
