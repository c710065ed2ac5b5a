"""Who sends what to whom in a step, drawn with the run's measurements. Pure.

Copies between devices are measured bytes. A collective's bytes on the wire are computed from its
payload by the ring algorithm, and are labelled so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dpwatch.plan.traffic import wire_bytes
from dpwatch.run.derive.collective_totals import PerRank, per_rank
from dpwatch.run.derive.comparison import HOST, devices
from dpwatch.run.model.snapshot import Run
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.canvas import BOX_LINES, Canvas
from dpwatch.tui.draw.layout import Block, table
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.sentences import collective_name, plural
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, line, wrapped
from dpwatch.tui.views.how_it_works.steps import Shape

WIDTH = 74
"""Cells a diagram takes at most."""

_MOST = 6
_BOX = 12
_LINK = 17
_RING_GAP = 26
_RINGED = {"all_reduce", "all_gather", "reduce_scatter"}
Diagram = Callable[[Run, int, Palette], Block]


def diagram(shape: Shape, run: Run, width: int, palette: Palette) -> Block:
    """The diagram of that shape, at most `width` (from 60 on) cells wide."""
    room = min(width, WIDTH)
    lines = _DIAGRAMS[shape](run, room, palette)
    return [fitted(each, room) for each in lines]


def shape_of(run: Run) -> Shape:
    """The shape of a run with an unknown strategy, from what it sends."""
    ops = {each.op for each in run.collectives}
    if {"all_gather", "reduce_scatter"} <= ops:
        return "layers"
    if ops & _RINGED or (ops and not run.transfers):
        return "ring"
    return "exchange" if run.transfers else "alone"


def _names(run: Run) -> list[str]:
    return [clean(rank.device, 16) or fmt.UNKNOWN for rank in devices(run)]


def _copied(run: Run, src: str, dst: str) -> int | None:
    """Bytes of all copies from one device to another, None if there is none."""
    sizes = [
        each.bytes_per_step
        for each in run.transfers
        if clean(each.src, 16) == src and clean(each.dst, 16) == dst
    ]
    return sum(sizes) if sizes else None


def _alone(run: Run, width: int, palette: Palette) -> Block:
    names = _names(run)[:1]
    if not names:
        return [line(("no device known yet", palette.muted))]
    canvas = Canvas(width, BOX_LINES)
    canvas.box(2, 0, _BOX, names[0], palette.accent, palette.strong)
    canvas.put(_BOX + 5, 1, "nothing is sent", palette.muted)
    return canvas.lines()


def _star(run: Run, width: int, palette: Palette) -> Block:
    """The centre on the left; on the right every worker, with bytes in both directions."""
    names = _names(run)
    server = HOST if any(rank.device == HOST for rank in run.ranks) else next(iter(names), "")
    workers = [name for name in names if name != server]
    if not workers:
        return _alone(run, width, palette)
    shown = workers[: _MOST if len(workers) <= _MOST else _MOST - 1]
    canvas = Canvas(width, BOX_LINES * len(shown))
    trunk, right = _BOX + 4, width - _BOX - 1
    middle = (BOX_LINES * len(shown)) // 2
    canvas.down(trunk, 1, BOX_LINES * len(shown) - 2, palette.faint)
    canvas.across(_BOX + 1, trunk, middle, palette.faint)
    canvas.put(trunk, middle, "┤", palette.faint)
    canvas.box(1, middle - 1, _BOX, server, palette.accent, palette.strong)
    for index, name in enumerate(shown):
        top = BOX_LINES * index
        canvas.across(trunk, right - 1, top + 1, palette.faint)
        canvas.put(trunk, top + 1, _joint(index, len(shown), top + 1 == middle), palette.faint)
        canvas.box(right, top, _BOX, name, palette.faint, palette.text)
        out, back = _copied(run, server, name), _copied(run, name, server)
        room = right - trunk - 3
        canvas.put(trunk + 2, top, f"{fmt.size(out):>10} ──▶", palette.text)
        canvas.put(right - 1 - min(14, room), top + 2, f"◀── {fmt.size(back)}", palette.text)
    sent = _total(run, src=server)
    received = _total(run, dst=server)
    note = f"{server} sends {fmt.size(sent)} and receives {fmt.size(received)} per step"
    if more := len(workers) - len(shown):
        note += f"; {more} more devices like these"
    return [*canvas.lines(), *wrapped(note, width, palette.strong)]


def _joint(index: int, number: int, is_middle: bool) -> str:
    if number == 1:
        return "─"
    if index == 0:
        return "┌"
    if index == number - 1:
        return "└"
    return "┼" if is_middle else "├"


def _total(run: Run, *, src: str | None = None, dst: str | None = None) -> int | None:
    sizes = [
        each.bytes_per_step
        for each in run.transfers
        if (src is None or clean(each.src, 16) == src)
        and (dst is None or clean(each.dst, 16) == dst)
    ]
    return sum(sizes) if sizes else None


def _exchange(run: Run, width: int, palette: Palette) -> Block:
    """Bytes from each device (a row) to each other (a column)."""
    names = list(dict.fromkeys(clean(end, 16) for t in run.transfers for end in (t.src, t.dst)))
    names = sorted(names)[:_MOST]
    rows = []
    for src in names:
        cells = [fmt.size(_copied(run, src, dst)) if src != dst else "·" for dst in names]
        rows.append((src, *cells, fmt.size(_total(run, src=src))))
    titles = ("from \\ to", *names, "sends")
    note = "bytes copied in a step"
    return [*table(titles, rows, width, palette), line((note, palette.muted))]


def _ring(run: Run, width: int, palette: Palette) -> Block:
    """The ranks on a rectangle, each sending to the next."""
    names = _names(run)
    if len(names) < 2:
        return _alone(run, width, palette)
    shown = names if len(names) <= _MOST else [*names[: _MOST - 2], "⋯", names[-1]]
    above = shown[: max(-(-len(shown) // 2), 2)]
    below = shown[len(above) :][::-1]
    gap = min((width - 2 - _BOX * len(above)) // (len(above) - 1), _RING_GAP)
    lefts = [1 + index * (_BOX + gap) for index in range(len(above))]
    under = lefts[len(above) - len(below) :]
    canvas = Canvas(width, 2 * BOX_LINES + 2)
    low, last, half = BOX_LINES + 3, lefts[-1] + _BOX // 2, 1 + _BOX // 2
    for y in (1, low):
        canvas.across(half, last, y, palette.faint)
    for x, y in ((half, 1), (last, 1)):
        canvas.down(x, y, low, palette.faint)
    canvas.put(half, low, "╰", palette.faint)
    canvas.put(last, low, "╯", palette.faint)
    canvas.put(last, BOX_LINES, "▼", palette.accent)
    canvas.put(half, BOX_LINES + 1, "▲", palette.accent)
    for x, name in zip(lefts, above, strict=True):
        canvas.box(x, 0, _BOX, name, palette.accent, palette.strong)
    for x, name in zip(under, below, strict=True):
        canvas.box(x, low - 1, _BOX, name, palette.accent, palette.strong)
    for x in lefts[1:]:
        canvas.put(x - 1, 1, "▶", palette.accent)
    for x in under[:-1]:
        canvas.put(x + _BOX, low, "◀", palette.accent)
    sent = next((rank.sent_bytes_per_step for rank in devices(run)), None)
    centre, room = half + 2, last - half - 4
    canvas.centred(centre, room, BOX_LINES, f"each sends {fmt.size(sent)}", palette.strong)
    canvas.centred(centre, room, BOX_LINES + 1, "per step, by the ring algorithm", palette.muted)
    more = _per_op(run, width, palette) if len({each.op for each in run.collectives}) > 1 else []
    return [*canvas.lines(), *more, *_halves(run, width, palette)]


def _halves(run: Run, width: int, palette: Palette) -> Block:
    """An all-reduce as its two passes around the ring."""
    found = next((each for each in run.collectives if each.op == "all_reduce"), None)
    if found is None or found.ranks < 2 or found.bytes_per_step is None:
        return []
    payload, ranks = found.bytes_per_step, found.ranks
    half = wire_bytes("reduce_scatter", payload, ranks)
    parts = (
        ("all-reduce", f"of {fmt.size(payload)} over {ranks} ranks is"),
        (
            "1. reduce-scatter",
            f"{plural(ranks - 1, 'hop')}, {fmt.size(half)} a rank: each owns 1/{ranks}",
        ),
        (
            "2. all-gather",
            f"{plural(ranks - 1, 'hop')}, {fmt.size(half)} a rank: all have every sum",
        ),
    )
    return [line((f"{name:<19}", palette.accent), (text, palette.text)) for name, text in parts]


_LAYERS = 4
_SKETCH = {"G": "gather", "U": "use", "S": "reduce-scatter", "d": "drop"}


def _layers(run: Run, width: int, palette: Palette) -> Block:
    """Gather, use, drop: layer after layer in forward, and back again in backward."""
    looks = {
        "G": palette.series[1],
        "U": palette.series[0],
        "S": palette.series[3],
        "d": palette.faint,
    }
    cells = {"G": "▒▒", "U": "██", "S": "▼▼", "d": "··"}
    if palette.mono:
        cells = {key: key * 2 for key in cells}
    forward, backward = "GUd", "GUSd"
    lines = [line((" " * 10 + "forward" + " " * 15 + "backward", palette.muted))]
    for layer in range(_LAYERS):
        parts = [(f"  layer {layer + 1} ", palette.text), (" " * (4 * layer), palette.text)]
        parts += [(cells[each], looks[each]) for each in forward]
        parts.append((" " * (4 * (_LAYERS - 1 - layer) * 2 + 2), palette.text))
        parts += [(cells[each], looks[each]) for each in backward]
        lines.append(line(*parts))
    legend = line(("  ", palette.text))
    for each, name in _SKETCH.items():
        legend.append(f"{cells[each]} ", looks[each])
        legend.append(f"{name}  ", palette.muted)
    note = "a sketch of four layers, not to scale"
    lines += [legend, line((f"  {note}", palette.muted)), Text()]
    return [*lines, *_per_op(run, width, palette)]


def _per_op(run: Run, width: int, palette: Palette) -> Block:
    """Each collective's payload and what a rank sends for it by the ring."""
    rows = [
        (
            f"{collective_name(each.op)} ×{each.ranks}{where(each)}",
            calls(each.count),
            fmt.size(each.hands_in),
            fmt.size(each.sends),
        )
        for each in per_rank(run)
    ]
    titles = ("per step and rank", "calls", "payload", "sent by the ring")
    return table(titles, rows, width, palette) if rows else []


def where(found: PerRank) -> str:
    """The group or the number of groups; "" for the world."""
    if found.groups > 1:
        return f" in {found.groups} groups"
    return "" if found.name == "default" else f" in {clean(found.name, 16)}"


def calls(count: float) -> str:
    """A number of calls per step, which may be a fraction."""
    return fmt.count(count) if count == int(count) else fmt.rate(count)


def _two_rings(run: Run, width: int, palette: Palette) -> Block:
    """A row per group, which gathers; columns, which all-reduce across the groups."""
    across = next((c for c in run.collectives if c.op == "all_gather"), None)
    names = _names(run)
    size = across.ranks if across else 0
    if not size or len(names) % size:
        return _per_op(run, width, palette) or _alone(run, width, palette)
    groups = [names[start : start + size] for start in range(0, len(names), size)]
    found = per_rank(run)
    within = sum(each.sends for each in found if each.op in ("all_gather", "reduce_scatter"))
    summed = [fmt.size(each.sends) for each in found if each.op == "all_reduce"]
    grid = _grid(groups, [fmt.size(within)], summed * size, width, palette)
    note = "↔ in a group: all-gather, reduce-scatter · ↕ across: all-reduce; bytes a rank sends"
    return [*grid, *wrapped(note, width, palette.muted), *_per_op(run, width, palette)]


def _stages(run: Run, width: int, palette: Palette) -> Block:
    """A row per rank: its two devices, with activations to the right and gradients to the left."""
    by_rank: dict[int, list[str]] = {}
    for rank in devices(run):
        by_rank.setdefault(rank.rank, []).append(clean(rank.device, 16))
    pairs = [names for names in by_rank.values() if len(names) > 1]
    if not pairs:
        return _per_op(run, width, palette) or _alone(run, width, palette)
    first, second = pairs[0][:2]
    hops = [fmt.size(_copied(run, first, second)), fmt.size(_copied(run, second, first))]
    summed = [fmt.size(each.sends) for each in per_rank(run) if each.op == "all_reduce"]
    grid = _grid(pairs, hops, summed, width, palette)
    note = "→ activations · ← their gradients · ↕ all-reduce: bytes a pair sends by the ring"
    return [*grid, *wrapped(note, width, palette.muted)]


def _grid(
    rows: Sequence[Sequence[str]],
    sideways: Sequence[str],
    down: Sequence[str],
    width: int,
    palette: Palette,
) -> Block:
    """Rows of boxes; `sideways` labels the links in a row, `down` those between rows.

    Args:
        rows: Names; rows or columns that don't fit are left out and counted.
        sideways: What goes right and, if there is a second one, what comes back.
        down: What goes between the rows, by column; missing ones are not labelled.
        width: Cells.
        palette: Theme.
    """
    columns = min(len(rows[0]), max((width + _LINK) // (_BOX + _LINK), 1))
    shown = rows[:_MOST] if len(rows) <= _MOST else rows[: _MOST - 1]
    pitch = BOX_LINES + 2
    canvas = Canvas(width, pitch * len(shown) - 2)
    for index, names in enumerate(shown):
        top = pitch * index
        for column, name in enumerate(names[:columns]):
            x = 1 + column * (_BOX + _LINK)
            canvas.box(x, top, _BOX, name, palette.accent, palette.strong)
            if column:
                _link(canvas, x - _LINK, top, sideways, palette)
            if index:
                canvas.put(x + _BOX // 2, top - 2, "▲", palette.accent)
                canvas.put(x + _BOX // 2, top - 1, "▼", palette.accent)
                label = "".join(down[column : column + 1])
                canvas.put(x + _BOX // 2 + 2, top - 2, label, palette.text)
    lines = canvas.lines()
    if len(rows) > len(shown):
        lines.append(line((f" and {len(rows) - len(shown)} rows more", palette.muted)))
    return lines


def _link(canvas: Canvas, x: int, top: int, labels: Sequence[str], palette: Palette) -> None:
    canvas.across(x + 1, x + _LINK - 2, top + 1, palette.faint)
    canvas.put(x + _LINK - 2, top + 1, "▶", palette.accent)
    canvas.centred(x + 1, _LINK - 2, top, labels[0] + (" →" if labels[1:] else ""), palette.text)
    canvas.put(x + 1, top + 1, "◀", palette.accent)
    if labels[1:]:
        canvas.centred(x + 1, _LINK - 2, top + 2, f"← {labels[1]}", palette.text)


_DIAGRAMS: dict[Shape, Diagram] = {
    "alone": _alone,
    "star": _star,
    "exchange": _exchange,
    "ring": _ring,
    "layers": _layers,
    "two rings": _two_rings,
    "stages": _stages,
}
