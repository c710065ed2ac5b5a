"""The one place that uses Textual beyond its public API.

Textual has no public way to see what it is about to write, to replace the file it writes to, or to
choose how it learns the terminal's size. Where a version of Textual has changed these internals,
`WORKS` is False and its own code runs instead: the screen is the same, more bytes are written per
refresh, a closed terminal may keep the process waiting, and COLUMNS and LINES count.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import IO, Any

from rich.console import RenderableType
from textual.app import App
from textual.driver import Driver
from textual.screen import Screen

try:
    from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
except ImportError:

    class CompositorUpdate:  # type: ignore[no-redef]
        """What Textual calls whatever it writes to the screen."""

    class ChopsUpdate(CompositorUpdate):  # type: ignore[no-redef]
        """Some parts of some lines."""

    class LayoutUpdate(CompositorUpdate):  # type: ignore[no-redef]
        """All lines of a region."""


def missing() -> list[str]:
    """What this version of Textual no longer has of that."""
    wanted = {
        "ChopsUpdate": (ChopsUpdate, ("chops", "spans", "chop_ends")),
        "LayoutUpdate": (LayoutUpdate, ("strips", "region")),
        "App._display": (getattr(App, "_display", object), ("screen", "renderable")),
    }
    found = [
        f"{name}({', '.join(fields)})"
        for name, (kind, fields) in wanted.items()
        if not {*fields} <= {*signature(kind).parameters}
    ]
    return found if hasattr(CompositorUpdate, "render_segments") else ["render_segments", *found]


WORKS = not missing()

__all__ = ["ChopsUpdate", "CompositorUpdate", "LayoutUpdate", "UpdatingApp", "driver_with"]


class UpdatingApp(App[None]):
    """An app that sees each update of its screen before it is written."""

    def updated(self, update: CompositorUpdate) -> CompositorUpdate:
        """The update to write instead of this one."""
        return update

    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        update: Any = renderable
        if WORKS and isinstance(update, CompositorUpdate) and not self.is_inline:
            update = self.updated(update)
        super()._display(screen, update)


def driver_with(
    driver: type[Driver], file: Callable[[IO[str]], Any], size: Callable[[], tuple[int, int]]
) -> type[Driver]:
    """The driver with another file to write to and another way to learn the terminal's size.

    Args:
        driver: One of Textual's.
        file: Called with the file it writes to, returns the one to write to instead.
        size: Returns columns and lines.
    """

    class OtherDriver(driver):  # type: ignore[valid-type, misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            if (own := getattr(self, "_file", None)) is not None:
                self._file = file(own)

        def _get_terminal_size(self) -> tuple[int, int]:
            return size()

    return OtherDriver
