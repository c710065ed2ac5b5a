"""A view as the dashboard knows it: name, digit, widget, keys."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from textual.widget import Widget


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class View:
    """A view, chosen by its digit or a click. Equal only to itself.

    Attributes:
        name: Its widget's id.
        title: Its name on the screen.
        short: The same where there is little room.
        widget: Its class, as `module:Class` of this package, imported when it is first shown.
        keys: Keys that this view has in addition, and what they do.
        filters: What can be typed into its filter, "" for a view without one.
        focus: Selector of the part that gets the keys, the whole by default.
        waits: Whether it is replaced by advice while there is no run.
    """

    name: str
    title: str
    short: str
    widget: str
    keys: tuple[tuple[str, str], ...] = ()
    filters: str = ""
    focus: str = ""
    waits: bool = True

    @property
    def target(self) -> str:
        """Selector of what gets the keys."""
        return self.focus or f"#{self.name}"

    def make(self) -> Widget:
        """Its widget."""
        module, _, name = self.widget.partition(":")
        widget: Widget = getattr(import_module(f"dpwatch.tui.{module}"), name)(id=self.name)
        return widget.add_class("view")


def digit(index: int) -> str:
    """The key of the view at that place: 1 to 9, then 0, then `?`."""
    return "1234567890?"[index]
