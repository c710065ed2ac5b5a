"""A run's communication: collectives, bytes by device, and the topology."""

from __future__ import annotations

from collections.abc import Sequence

from dpwatch.run.derive.comparison import HOST, exposed_share, others_median, traffic_bytes
from dpwatch.run.derive.distribution import spread
from dpwatch.run.derive.issuers import recent
from dpwatch.run.model.snapshot import CollectiveStats, IssuerStats, Rank, Run
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.bars import stacked
from dpwatch.tui.draw.layout import Block, beside, heading, table
from dpwatch.tui.draw.metrics import name_of
from dpwatch.tui.draw.palette import TRAFFIC_KINDS, Palette
from dpwatch.tui.draw.sentences import collective_name, issuer_name, plural, strategy_of
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, left, line, right
from dpwatch.tui.snapshots.frame import Frame
from dpwatch.tui.views.communication.tables import copies_lines
from dpwatch.tui.views.how_it_works.diagrams import WIDTH, diagram, shape_of
from dpwatch.tui.views.how_it_works.steps import SCHEMES, Shape
from dpwatch.tui.widgets.base import Scrolling, palette_of

_BESIDE_WIDTH = 160
_ONE_LINE_WIDTH = 112
"""From this width on all figures of a collective fit on one line."""
_OPS_SHOWN = 24
_ISSUERS_SHOWN = 12
_ROWS = 16
_HEADS = (
    *("collective", "calls", "bytes", "p50", "p95", "algbw", "busbw", "exposed"),
    *("last to arrive", "others wait"),
)


class Communication(Scrolling):
    """Collectives and copies of the run on screen."""

    def paint(self, frame: Frame, width: int, height: int) -> list[Text]:
        """All of it; it scrolls."""
        return traffic_lines(frame, width, palette_of(self))


def traffic_lines(frame: Frame, width: int, palette: Palette) -> Block:
    """Collectives, copies, traffic by device, and the diagram, which is beside them if it fits."""
    view = frame.view
    if view is None:
        return [line(("no run yet", palette.muted))]
    run = view.run
    if not run.collectives and not run.transfers:
        return _nothing(run, width, palette)
    room = width - WIDTH - 4 if width >= _BESIDE_WIDTH else width
    told = [
        *_cost(run, room, palette),
        *_collectives(run.collectives, room, palette),
        *_issuers(recent(run), room, palette),
        *copies_lines(run, room, palette),
        Text(),
        *_by_device(run, room, palette),
    ]
    picture = [
        heading("Who sends to whom", min(width, WIDTH), palette, "with this run's bytes"),
        *diagram(_shape(run), run, width, palette),
    ]
    if room < width:
        lines = beside([[fitted(each, room) for each in told], picture], gap=3)
    else:
        lines = [*told, Text(), *picture]
    return [fitted(each, width) for each in lines]


def _cost(run: Run, width: int, palette: Palette) -> Block:
    """The cost of communication on the device with the highest; empty while unknown."""
    found = spread(run, lambda rank: rank.comm_ms.exposed)
    if found is None:
        return []
    text = "Compute does not wait for communication."
    if found.high:
        share = fmt.share(exposed_share(found.highest))
        who = name_of(found.highest, run.ranks)
        text = (
            f"Compute waits up to {fmt.millis(found.high)} per step for communication: "
            f"{share} of {who}'s step."
        )
    return [fitted(line((text, palette.strong)), width)]


def _nothing(run: Run, width: int, palette: Palette) -> Block:
    if len(run.ranks) == 1:
        text = "One device: no communication."
    elif run.steps < 1:
        text = "No step yet: collectives and copies appear with the first steps."
    else:
        text = f"No collectives or copies in {plural(run.steps, 'step')}."
    return [fitted(line((f"{strategy_of(run)}  ", palette.accent), (text, palette.text)), width)]


def _shape(run: Run) -> Shape:
    """A star around one device, a ring, or the strategy's own shape."""
    scheme = SCHEMES.get(run.strategy)
    shape = scheme.shape if scheme else shape_of(run)
    if shape == "layers":
        return "ring"
    first = run.ranks[0].device if run.ranks else ""
    if shape == "exchange" and all(first in (each.src, each.dst) for each in run.transfers):
        return "star"
    return shape


def _collectives(found: Sequence[CollectiveStats], width: int, palette: Palette) -> Block:
    if not found:
        return []
    note = "a step; bytes are the payload of a rank"
    lines = [heading("Collectives", width, palette, note)]
    shown = sorted(found, key=lambda each: -(each.bytes_per_step or 0))[:_OPS_SHOWN]
    rows = [_figures(each) for each in shown]
    if width >= _ONE_LINE_WIDTH:
        lines += table(_HEADS, rows, width, palette)
    else:
        first, *more = table(_HEADS[:5], [row[:5] for row in rows], width, palette)
        lines.append(first)
        for row, figures in zip(more, rows, strict=True):
            lines += [row, *_more_lines(figures, palette)]
    if len(found) > len(shown):
        lines.append(line((f"and {len(found) - len(shown)} more", palette.muted)))
    return lines


def _figures(stats: CollectiveStats) -> tuple[str, ...]:
    group = "" if stats.group == "default" else f" · {clean(stats.group, 16)}"
    last = stats.last_arrival
    return (
        f"{collective_name(stats.op)}{group} ×{stats.ranks}",
        fmt.rate(stats.count_per_step),
        fmt.size(stats.bytes_per_step),
        fmt.millis(stats.latency_ms.p50),
        fmt.millis(stats.latency_ms.p95),
        fmt.bandwidth(stats.algbw_gbps),
        fmt.bandwidth(stats.busbw_gbps),
        fmt.millis(stats.exposed_ms_per_step),
        f"rank {last.rank} in {fmt.share(last.share)}" if last else fmt.UNKNOWN,
        fmt.millis(last.wait_ms) if last else fmt.UNKNOWN,
    )


def _more_lines(figures: Sequence[str], palette: Palette) -> Block:
    """Figures that don't fit on one line, each after its name."""
    *times, last, wait = figures[5:]
    pairs = [zip(("algbw", "busbw", "exposed"), times, strict=True)]
    if last != fmt.UNKNOWN:
        pairs.append(zip(("last to arrive", "others wait"), (last, wait), strict=True))
    lines = []
    for each in pairs:
        told = line(("   ", palette.text))
        for name, value in each:
            told.append(f"{name} ", palette.muted)
            told.append(f"{value}  ", palette.text)
        lines.append(told)
    return lines


def _issuers(found: Sequence[IssuerStats], width: int, palette: Palette) -> Block:
    """Collectives issued by frameworks instead of the script."""
    if not found:
        return []
    note = "a step, of the collectives above"
    rows = [
        (
            issuer_name(each),
            fmt.rate(each.count_per_step),
            fmt.size(each.bytes_per_step),
            _typed_name(each),
        )
        for each in found[:_ISSUERS_SHOWN]
    ]
    lines = [heading("Issued by frameworks", width, palette, note)]
    lines += table(("for", "calls", "bytes", "collective"), rows, width, palette)
    if len(found) > len(rows):
        lines.append(line((f"and {len(found) - len(rows)} more", palette.muted)))
    return lines


def _typed_name(stats: IssuerStats) -> str:
    dtype = f"{clean(stats.dtype, 12)} " if stats.dtype else ""
    group = "" if stats.group == "default" else f" · {clean(stats.group, 16)}"
    return f"{dtype}{collective_name(stats.op)}{group} ×{stats.ranks}"


def _by_device(run: Run, width: int, palette: Palette) -> Block:
    """A bar per device on one scale: bytes sent and received; of many, the top and device 0."""
    rows = list(run.ranks)
    note = "a step, sent and received"
    if len(rows) > _ROWS:
        others = sorted(rows[1:], key=lambda rank: -(traffic_bytes(rank) or 0))
        rows = [rows[0], *others[: _ROWS - 1]]
        note = f"device 0 and the {_ROWS - 1} heaviest of {len(run.ranks) - 1} others"
    full = max((traffic_bytes(rank) or 0 for rank in rows), default=0)
    lines = [heading("Traffic by device", width, palette, note)]
    lines += [_device(rank, run, full, width, palette) for rank in rows]
    return [*lines, _sum_line(run, width, palette)]


def _device(rank: Rank, run: Run, full: float, width: int, palette: Palette) -> Text:
    name = "the host" if rank.device == HOST else clean(rank.device, 9)
    if run.ranks[0].rank != run.ranks[-1].rank:
        name = f"{rank.rank:>4} {name}"
    parts = {"sent": rank.sent_bytes_per_step, "received": rank.received_bytes_per_step}
    room = max(width - 15 - 3 * 12, 10)
    figures = (
        *(f"{TRAFFIC_KINDS[key].letter} {fmt.size(value)}" for key, value in parts.items()),
        fmt.size(traffic_bytes(rank)),
    )
    return line(
        (left(name, 15), palette.text),
        stacked(parts, TRAFFIC_KINDS, room, palette, total=full or None),
        *((right(each, 12), palette.muted) for each in figures[:2]),
        (right(figures[2], 12), palette.strong),
    )


def _sum_line(run: Run, width: int, palette: Palette) -> Text:
    times = run.balance.traffic_device0_over_median
    if times is None:
        return Text(" " * width)
    median = others_median(run, traffic_bytes)
    text = f"device 0 carries {fmt.ratio(times)} the others' median of {fmt.size(median)}"
    return line((text, palette.muted))
