"""The page of what many ranks cost: a table and a plot, made from measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.scale import Cost

BEGIN, END = "<!-- measured: make bench-scale -->", "<!-- end -->"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 60, 150, 30, 50
COLOURS = {"hub": "#1f6feb", "viewer": "#d29922"}
DASHES = {"steps": "", "ddp": "6 3", "fsdp": "2 3"}


def write(costs: Sequence[Cost], folder: Path) -> None:
    """Puts the table into `scale.md` and the plot beside it."""
    page = folder / "scale.md"
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table(costs)}\n{END}{after}")
    (folder / "scale.svg").write_text(plot(costs))


def table(costs: Sequence[Cost]) -> str:
    """The measurements as Markdown."""
    lines = [
        "| load | ranks | records/s | hub | hub, watched | hub's memory | viewer | complete after "
        "| lost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c.load} | {c.ranks:,} | {c.records_per_s:,.0f} | {c.hub:.1%} | {c.watched:.1%} | "
        f"{c.hub_mb:.0f} MB | {c.viewer:.1%} | {c.complete_s:.2f} s | "
        f"{c.lost_steps} steps, {c.lost_frames} frames |"
        for c in costs
    ]
    return "\n".join(lines)


def plot(costs: Sequence[Cost]) -> str:
    """Share of a core against ranks, both logarithmic: what grows linearly has the grid's slope."""
    x0, x1 = min(c.ranks for c in costs), max(max(c.ranks for c in costs), 128)
    shares = [max(share, 1e-3) for c in costs for share in (c.hub, c.viewer)]
    y0, y1 = _decade_below(min(shares)), 2 * max(shares)

    def x(ranks: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * _part(ranks, x0, x1)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _part(max(share, y0), y0, y1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18">Share of a core against ranks at 10 steps/s, both axes '
        "logarithmic; grey: linear growth</text>",
    ]
    for ranks in sorted({c.ranks for c in costs}):
        out.append(_line(x(ranks), y(y0), x(ranks), y(y1), "#dddddd"))
        out.append(_text(x(ranks), HEIGHT - BOTTOM + 18, f"{ranks:,}", "middle"))
    tick = y0
    while tick <= y1:
        out.append(_line(x(x0), y(tick), x(x1), y(tick), "#dddddd"))
        out.append(_text(LEFT - 6, y(tick) + 4, f"{tick:.1%}", "end"))
        tick *= 10
    start = y0
    while start < y1:  # lines of slope one
        last = min(x1, x0 * y1 / start)
        out.append(_line(x(x0), y(start), x(last), y(start * last / x0), "#eeeeee"))
        start *= 10**0.5
    for load in dict.fromkeys(c.load for c in costs):
        some = [c for c in costs if c.load == load]
        for who in COLOURS:
            points = [(x(c.ranks), y(getattr(c, who))) for c in some]
            out += _curve(points, COLOURS[who], DASHES.get(load, ""))
            out.append(_text(points[-1][0] + 8, points[-1][1] + 4, f"{who}, {load}"))
    return "\n".join([*out, "</svg>"]) + "\n"


def _part(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low)


def _decade_below(value: float) -> float:
    return float(10.0 ** math.floor(math.log10(value)))


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def _curve(points: Sequence[tuple[float, float]], colour: str, dashes: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
        f'stroke-dasharray="{dashes}"/>',
        *dots,
    ]
