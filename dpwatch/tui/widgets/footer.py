"""The available keys, at the bottom of the screen: to read and to click.

Textual's own footer has a widget per key and recreates all of them with each view, which takes
longer than drawing the view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.style import Style
from textual import events
from textual.screen import Screen

from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import Part, fitted, line
from dpwatch.tui.render.line_widget import Line, Lines
from dpwatch.tui.widgets.base import palette_of


class Key(NamedTuple):
    """A key as written, what it does, and its name for Textual."""

    written: str
    does: str
    name: str


def keys_line(keys: Sequence[Key], last: Key | None, width: int, palette: Palette) -> Text:
    """The keys that fit, none of them cut; `last`, if there is room for it, on the right."""
    room = width
    shown: list[Part] = []
    for key in keys:
        cell = _cell(key, palette)
        if cell.cell_len > room:
            break
        shown.append(cell)
        room -= cell.cell_len
    left = line(*shown)
    if last is None or len(shown) < len(keys):
        return fitted(left, width)
    right = line(("▏", palette.faint), _cell(last, palette), (" ", palette.text))
    if right.cell_len > room:
        return fitted(left, width)
    return line(fitted(left, width - right.cell_len), right)


def _cell(key: Key, palette: Palette) -> Text:
    target = Style(meta={"key": key.name})
    return line(
        (f" {key.written} ", palette.accent + Style(bold=True) + target),
        (f"{key.does} ", palette.text + target),
    )


class KeysLine(Lines):
    """The keys that do something now."""

    def on_mount(self) -> None:
        """Follow what is bound."""
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen[object]) -> None:
        if self.is_attached and screen is self.screen:
            self.redraw()

    def line_at(self, y: int) -> Line:
        """The keys of the focused widget, each once."""
        app, bound = self.app, self.screen.active_bindings
        actions: dict[str, Key] = {}
        for _, binding, enabled, _ in bound.values():
            if binding.show and enabled:
                key = Key(app.get_key_display(binding), binding.description, binding.key)
                actions.setdefault(binding.action, key)
        found = bound.get(app.COMMAND_PALETTE_BINDING)
        last = None
        if found is not None:
            last = Key(app.get_key_display(found.binding), "palette", found.binding.key)
        return Line(keys_line(list(actions.values()), last, self.size.width, palette_of(self)))

    def on_click(self, event: events.Click) -> None:
        """Press the clicked key."""
        name = event.style.meta.get("key")
        if name is not None:
            self.app.simulate_key(name)
