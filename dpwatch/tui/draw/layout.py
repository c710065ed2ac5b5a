"""Blocks of lines: boxes, columns, tables. Pure; all lines of a block are equally wide."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.style import Style

from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import clip, fitted, left, line, right

Block = list[Text]


def boxed(title: str, body: Sequence[Text], width: int, height: int, palette: Palette) -> Block:
    """The lines in a rounded frame of exactly `width` × `height` cells; the rest is dropped."""
    inner = width - 4
    name = clip(title, inner - 2)
    dashes = "─" * (width - 5 - cell_len(name))
    top = line(("╭─ ", palette.faint), (name, palette.accent), (f" {dashes}╮", palette.faint))
    rows = [*body[: height - 2], *[Text()] * max(height - 2 - len(body), 0)]
    edge = palette.faint
    middle = [line(("│ ", edge), fitted(row, inner), (" │", edge)) for row in rows]
    return [top, *middle, line(("╰" + "─" * (width - 2) + "╯", edge))]


def beside(blocks: Sequence[Block], gap: int = 1) -> Block:
    """Blocks side by side; shorter ones are padded with blanks."""
    height = max((len(block) for block in blocks), default=0)
    widths = [block[0].cell_len if block else 0 for block in blocks]
    lines = []
    for row in range(height):
        parts: list[Text | tuple[str, Style]] = []
        for index, (block, width) in enumerate(zip(blocks, widths, strict=True)):
            if index:
                parts.append((" " * gap, Style()))
            parts.append(block[row] if row < len(block) else Text(" " * width))
        lines.append(line(*parts))
    return lines


def heading(title: str, width: int, palette: Palette, note: str = "") -> Text:
    """A section's title followed by a rule."""
    name = clip(title, width - 2)
    shown_note = clip(f" {note}", width - cell_len(name) - 4) if note else ""
    rule = "─" * max(width - cell_len(name) - cell_len(shown_note) - 2, 0)
    return line((name, palette.accent), (shown_note, palette.muted), (f" {rule}", palette.faint))


def facts(pairs: Sequence[tuple[str, str | Text]], palette: Palette, name_width: int = 0) -> Block:
    """Names on the left, values on the right."""
    room = name_width or max((cell_len(name) for name, _ in pairs), default=0)
    return [
        line(
            (left(name, room) + "  ", palette.muted),
            value if isinstance(value, Text) else (value, palette.text),
        )
        for name, value in pairs
    ]


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str | Text]], width: int, palette: Palette
) -> Block:
    """A table whose first column is text and whose others are figures.

    Columns that don't fit into `width` are dropped whole, from the right: no figure is ever cut.
    """
    widths = [
        max(cell_len(title), *(_length(row[i]) for row in rows)) if rows else cell_len(title)
        for i, title in enumerate(titles)
    ]
    shown, used = 0, -2
    for each in widths:
        if shown and used + 2 + each > width:
            break
        used += 2 + each
        shown += 1
    head = [_cell(title, widths[i], i, palette.muted) for i, title in enumerate(titles[:shown])]
    lines = [_joined(head)]
    for row in rows:
        cells = [_cell(row[i], widths[i], i, palette.text) for i in range(shown)]
        lines.append(_joined(cells))
    return [fitted(each, width) for each in lines]


def _length(cell: str | Text) -> int:
    return cell.cell_len if isinstance(cell, Text) else cell_len(cell)


def _cell(cell: str | Text, width: int, column: int, style: Style) -> Text:
    if isinstance(cell, Text):
        return fitted(cell, width)
    return line((left(cell, width) if column == 0 else right(cell, width), style))


def _joined(cells: Sequence[Text]) -> Text:
    parts: list[Text | tuple[str, Style]] = []
    for index, cell in enumerate(cells):
        if index:
            parts.append(("  ", Style()))
        parts.append(cell)
    return line(*parts)
