"""A grid of cells to draw boxes, lines and words on."""

from __future__ import annotations

from rich.cells import cell_len
from rich.style import Style

from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import clip

BOX_LINES = 3


class Canvas:
    """`width` × `height` cells; anything outside is dropped. Text has one-cell characters."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._cells: list[list[tuple[str, Style | None]]] = [
            [(" ", None)] * width for _ in range(height)
        ]

    def put(self, x: int, y: int, text: str, style: Style) -> None:
        """Text from a cell on, clipped at the edge; a wide character is replaced by `?`."""
        if not 0 <= y < self.height:
            return
        for offset, char in enumerate(text):
            if 0 <= x + offset < self.width:
                self._cells[y][x + offset] = (char if cell_len(char) == 1 else "?", style)

    def centred(self, x: int, width: int, y: int, text: str, style: Style) -> None:
        """Text centred in `width` cells."""
        shown = clip(text, width)
        self.put(x + (width - len(shown)) // 2, y, shown, style)

    def box(self, x: int, y: int, width: int, text: str, frame: Style, style: Style) -> None:
        """A rounded box, three lines high, with a word in it."""
        self.put(x, y, "╭" + "─" * (width - 2) + "╮", frame)
        self.put(x, y + 1, "│" + " " * (width - 2) + "│", frame)
        self.put(x, y + 2, "╰" + "─" * (width - 2) + "╯", frame)
        self.centred(x + 1, width - 2, y + 1, text, style)

    def across(self, x0: int, x1: int, y: int, style: Style) -> None:
        """A horizontal line from `x0` to `x1`, both included."""
        self.put(x0, y, "─" * (x1 - x0 + 1), style)

    def down(self, x: int, y0: int, y1: int, style: Style) -> None:
        """A vertical line from `y0` to `y1`, both included."""
        for y in range(y0, y1 + 1):
            self.put(x, y, "│", style)

    def lines(self) -> list[Text]:
        """The rows, each `width` cells."""
        result = []
        for row in self._cells:
            text = Text()
            for char, style in row:
                text.append(char, style or Style.null())
            result.append(text)
        return result
