"""Everything known about one rank or device. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dpwatch.run.derive.comparison import peak_bytes, traffic_bytes
from dpwatch.run.model.snapshot import Curve, MemoryUse, Rank, RunView
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.bar_segments import memory_parts, phase_parts
from dpwatch.tui.draw.bars import stacked
from dpwatch.tui.draw.layout import Block, beside, boxed, facts
from dpwatch.tui.draw.palette import MEMORY_KINDS, PHASE_KINDS, STATE_GLYPHS, Kind, Palette
from dpwatch.tui.draw.plot import Series, plot
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, line, right
from dpwatch.tui.views.communication.tables import communication_lines

_PLOT_LINES = 8


def rank_lines(view: RunView, index: int, width: int, palette: Palette) -> Block:
    """The numbers of `view.run.ranks[index]` by name, and its curves."""
    rank = view.run.ranks[index]
    columns = 2 if width >= 100 else 1
    cell = (width - (columns - 1)) // columns
    step_curve = _at(view.history.rank_step_ms, index)
    peak_curve = _at(view.history.rank_peak_bytes, index)
    pairs = [
        (
            _box("Time of a step", _time(rank, cell - 4, palette), cell, palette),
            _box(_memory_title(rank), _memory(rank, cell - 4, palette), cell, palette),
        ),
        (
            _box("Thread and communication", _thread(rank, palette), cell, palette),
            _box("Traffic and device", _device(rank, palette), cell, palette),
        ),
        (
            _curve("Step time", step_curve, fmt.millis, cell, palette),
            _curve("Peak memory", peak_curve, fmt.size, cell, palette),
        ),
    ]
    lines = [_head(rank, palette), *_host(view, rank, palette), Text()]
    for first, second in pairs:
        lines += beside(_level(first, second, palette)) if columns == 2 else [*first, *second]
    comm = communication_lines(view.run, width, palette)
    return [fitted(each, width) for each in (*lines, *comm)]


def _at(curves: tuple[Curve, ...], index: int) -> Curve:
    return curves[index] if index < len(curves) else Curve()


def _head(rank: Rank, palette: Palette) -> Text:
    return line(
        (f"rank {rank.rank} · {clean(rank.device, 40)}", palette.strong),
        ("   ", palette.text),
        (f"{STATE_GLYPHS.get(rank.state, '·')} {clean(rank.state, 20)}", palette.state(rank.state)),
        (f"   {clean(rank.host, 60)} · pid {rank.pid} · {rank.steps} steps", palette.muted),
        (f" · {rank.dropped} records dropped" if rank.dropped else "", palette.warn),
        (f" · {rank.missed_frames} frames missed" if rank.missed_frames else "", palette.warn),
    )


def _host(view: RunView, rank: Rank, palette: Palette) -> Block:
    """Its host's clock offset from the head's, and how long since its last report."""
    host = next((each for each in view.run.other_hosts if each.host == rank.host), None)
    if host is None:
        return []
    offset = fmt.clock_offset(host.clock_offset_ms, host.clock_error_ms)
    by = f" by {clean(host.clock_source, 20)}" if host.clock_source else ""
    return [
        line(
            (f"clock of {clean(rank.host, 40)} against the head's: {offset}{by}", palette.muted),
            (
                "" if host.silent_s is None else f" · no report for {host.silent_s:.0f} s",
                palette.warn,
            ),
        )
    ]


def _box(title: str, body: Block, width: int, palette: Palette) -> Block:
    return boxed(title, body, width, len(body) + 2, palette)


def _level(first: Block, second: Block, palette: Palette) -> list[Block]:
    """Both boxes as high as the higher one: blank framed lines are added at the bottom."""
    height = max(len(first), len(second))
    levelled = []
    for block in (first, second):
        blank = line(("│" + " " * (block[0].cell_len - 2) + "│", palette.faint))
        levelled.append([*block[:-1], *[blank] * (height - len(block)), block[-1]])
    return levelled


def _time(rank: Rank, width: int, palette: Palette) -> Block:
    step = rank.step_ms
    parts = phase_parts(rank.phases_ms)
    return [
        line(
            ("median ", palette.muted),
            (fmt.millis(step.p50), palette.strong),
            ("   p95 ", palette.muted),
            (fmt.millis(step.p95), palette.text),
            ("   last ", palette.muted),
            (fmt.millis(step.last), palette.text),
        ),
        *_parts(parts, PHASE_KINDS, fmt.millis, step.p50, width, palette),
    ]


def _memory(rank: Rank, width: int, palette: Palette) -> Block:
    memory = rank.memory
    parts = memory_parts(memory)
    if not parts.get("untold"):
        parts.pop("untold", None)
    return [
        line(
            ("peak ", palette.muted),
            (fmt.size(peak_bytes(rank)), palette.strong),
            ("   now ", palette.muted),
            (fmt.size(memory.current_bytes), palette.text),
            ("   capacity ", palette.muted),
            (fmt.size(memory.capacity_bytes), palette.text),
            (f"   by {clean(memory.source, 12)}" if memory.source else "", palette.muted),
        ),
        *_parts(parts, MEMORY_KINDS, fmt.size, memory.peak_bytes, width, palette),
        *_apart(memory, palette),
    ]


def _memory_title(rank: Rank) -> str:
    whole = rank.memory.peak_of == "process"
    return "Memory at the process's peak" if whole else "Memory at the step's peak"


def _apart(memory: MemoryUse, palette: Palette) -> Block:
    """What is known besides the peak, if that is the process's and not a step's."""
    if memory.peak_of != "process":
        return []
    guess, error = memory.activations_estimate, memory.activations_error
    told = "" if guess is None else f"~{fmt.size(guess)}"
    told += f", error {fmt.size(error)}" if told and error is not None else ""
    return facts(
        [
            ("grads at a step's end", fmt.size(memory.at_step_end.grads)),
            ("malloc'ed at its end", fmt.size(memory.heap_bytes)),
            ("activations, estimated", told or fmt.UNKNOWN),
        ],
        palette,
    )


def _parts(
    parts: Mapping[str, float | None],
    kinds: Mapping[str, Kind],
    show: Callable[[float | None], str],
    total: float | None,
    width: int,
    palette: Palette,
) -> Block:
    """The stacked bar, then a line per part with its own bar and its share."""
    lines = [stacked(parts, kinds, width, palette, total=total)]
    room = max(width - 33, 4)
    for name, value in parts.items():
        kind = kinds[name]
        bar = stacked({name: value}, {name: kind}, room, palette, total=total or None)
        of_all = fmt.share(value / total) if value is not None and total else fmt.UNKNOWN
        lines.append(
            line(
                (f"{kind.letter} {kind.name:<15}", palette.muted),
                bar,
                (right(show(value), 10), palette.text),
                (right(of_all, 6), palette.muted),
            )
        )
    return lines


def _thread(rank: Rank, palette: Palette) -> Block:
    comm = rank.comm_ms
    return facts(
        [
            ("GIL wait", fmt.share(rank.gil_wait)),
            ("idle", fmt.share(rank.idle)),
            ("queue", fmt.share(rank.runqueue_wait)),
            ("communication a step", fmt.millis(comm.total)),
            ("… exposed", fmt.millis(comm.exposed)),
            ("… waiting for peers", fmt.millis(comm.wait)),
        ],
        palette,
    )


def _device(rank: Rank, palette: Palette) -> Block:
    gpu = rank.gpu
    temperature = fmt.UNKNOWN if gpu.temperature_c is None else f"{gpu.temperature_c:.0f} °C"
    power = fmt.UNKNOWN if gpu.power_w is None else f"{gpu.power_w:.0f} W"
    return facts(
        [
            ("sent a step", fmt.size(rank.sent_bytes_per_step)),
            ("received a step", fmt.size(rank.received_bytes_per_step)),
            ("both", fmt.size(traffic_bytes(rank))),
            ("GPU busy", fmt.share(gpu.util)),
            ("GPU temperature", temperature),
            ("GPU power", power),
        ],
        palette,
    )


def _curve(
    title: str,
    curve: Curve,
    show: Callable[[float | None], str],
    width: int,
    palette: Palette,
) -> Block:
    series = [Series(name="", curve=curve, style=palette.series[0])]
    body = plot(series, width - 4, _PLOT_LINES, palette, label=show, from_zero=True)
    return _box(title, body, width, palette)
