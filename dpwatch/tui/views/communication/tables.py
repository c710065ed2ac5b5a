"""Tables of a run's collectives and of the copies between its devices. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dpwatch.run.model.snapshot import CollectiveStats, LastArrival, Run, RunView, TransferStats
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.layout import Block, beside, heading, table
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.plot import Series, plot
from dpwatch.tui.draw.sentences import collective_name
from dpwatch.tui.draw.text import fitted

LOWER_MIN, LOWER_MAX = 7, 11
"""The least and the most lines of the overview's lower part; its curve grows with the room."""
_BESIDE_WIDTH = 110


def communication_lines(run: Run, width: int, palette: Palette) -> Block:
    """Collectives, then copies; empty if there are none."""
    lines: Block = []
    heaviest = sorted(run.collectives, key=lambda c: -(c.bytes_per_step or 0))
    if heaviest:
        lines.append(
            heading("Collectives", width, palette, "a step; bytes are the payload of a rank")
        )
        lines += table(_HEADS, [_collective(c) for c in heaviest], width, palette)
    return [*lines, *copies_lines(run, width, palette)]


def copies_lines(run: Run, width: int, palette: Palette) -> Block:
    """Copies between the devices of a process; empty if there are none."""
    if not run.transfers:
        return []
    return [
        heading("Copies between devices", width, palette, "per step"),
        *table(("copy", "bytes", "time"), _copies(run.transfers), width, palette),
    ]


_HEADS = ("collective", "calls", "bytes", "p50", "p95", "exposed", "last in", "others wait", "bus")


def _collective(stats: CollectiveStats) -> tuple[str, ...]:
    group = "" if stats.group == "default" else f" · {clean(stats.group, 16)}"
    return (
        f"{collective_name(stats.op)}{group} ×{stats.ranks}",
        fmt.rate(stats.count_per_step),
        fmt.size(stats.bytes_per_step),
        fmt.millis(stats.latency_ms.p50),
        fmt.millis(stats.latency_ms.p95),
        fmt.millis(stats.exposed_ms_per_step),
        *_last(stats.last_arrival),
        fmt.bandwidth(stats.busbw_gbps),
    )


def _last(last: LastArrival | None) -> tuple[str, str]:
    """The rank that is last most often, in what share of calls, and how long the others wait."""
    if last is None:
        return fmt.UNKNOWN, fmt.UNKNOWN
    return f"rank {last.rank} {fmt.share(last.share)}", fmt.millis(last.wait_ms)


MOSTLY = 0.7
"""A rank that is last in a smaller share of the calls may just have had its turn."""


def last_to_arrive(run: Run) -> str:
    """The same for the collective with the longest wait; "" if no rank is mostly last."""
    arrivals = [each.last_arrival for each in run.collectives if each.last_arrival is not None]
    known = [each for each in arrivals if each.share >= MOSTLY]
    if not known:
        return ""
    worst = max(known, key=lambda last: last.wait_ms or 0.0)
    share, wait = fmt.share(worst.share), fmt.millis(worst.wait_ms)
    return f"rank {worst.rank} comes last in {share} of calls, others wait {wait}"


def _copies(transfers: Sequence[TransferStats]) -> list[tuple[str, ...]]:
    """One row per kind and hub device: three replicas sent from device 0 are one line."""
    rows: list[tuple[str, ...]] = []
    for kind in dict.fromkeys(t.kind for t in transfers):
        some = [t for t in transfers if t.kind == kind]
        sources = list(dict.fromkeys(clean(t.src, 16) for t in some))
        targets = list(dict.fromkeys(clean(t.dst, 16) for t in some))
        rows.append(
            (
                f"{clean(kind, 16).replace('_', ' ')}: {_ends(sources)} → {_ends(targets)}",
                fmt.size(sum(t.bytes_per_step for t in some)),
                fmt.millis(sum(t.ms_per_step for t in some)),
            )
        )
    return rows


def _ends(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} devices"


def lower_lines(view: RunView, width: int, height: int, palette: Palette) -> Block:
    """Communication, and beside it, if there is room, the run's step time as a curve."""
    rows = min(max(height, LOWER_MIN), LOWER_MAX)
    comm = communication_lines(view.run, width, palette)
    if comm and width < _BESIDE_WIDTH:
        return comm
    left_width = width * 62 // 100 if comm else 0
    right_width = width - left_width - (3 if comm else 0)
    series = [Series(name="", curve=view.history.step_ms, style=palette.series[0])]
    curve = [
        heading("Step time", right_width, palette, "slowest rank"),
        *plot(series, right_width, rows - 1, palette, label=fmt.millis, from_zero=True),
    ]
    if not comm:
        return curve
    tables = [
        fitted(each, left_width) for each in communication_lines(view.run, left_width, palette)
    ]
    return beside([tables, curve], gap=3)
