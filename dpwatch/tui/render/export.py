"""How the screen is written, and what can be taken away from it: text, and a picture."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from textual._compositor import CompositorUpdate
from textual.app import App
from textual.binding import Binding
from textual.screen import Screen

from dpwatch.tui.draw.sentences import plural
from dpwatch.tui.render.ascii import key_to_ascii
from dpwatch.tui.render.terminal_diff import Screenful


class Takeaway(App[None]):
    """An app whose widgets know their text (`copied`), and that may draw in ASCII alone."""

    def __init__(self) -> None:
        super().__init__()
        self.screenful = Screenful()

    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        """Writes what differs from what stands on the terminal."""
        update: Any = renderable
        if isinstance(update, CompositorUpdate) and not self.is_inline:
            update = self.screenful.narrowed(update)
        super()._display(screen, update)

    def action_copy(self) -> None:
        """Put the row under the cursor, or the whole view, onto the clipboard as text."""
        copied = getattr(self.screen_stack[0].focused, "copied", None)
        text = copied() if copied is not None else ""
        if text:
            self.copy_to_clipboard(text)
            lines = text.count("\n") + 1
            self.notify(f"copied {plural(lines, 'line')}", timeout=2, markup=False)

    def action_save(self) -> None:
        """Save the screen as an SVG file where dpwatch was started."""
        try:
            self.notify(f"saved {self.save_screenshot()}", timeout=5, markup=False)
        except OSError as error:
            reason = f"not saved: {error.strerror or error}"
            self.notify(reason, severity="error", timeout=5, markup=False)

    def get_key_display(self, binding: Binding) -> str:
        """A key as the footer writes it."""
        shown = super().get_key_display(binding)
        return key_to_ascii(shown) if self.has_class("ascii") else shown
