"""Writing the screen to the terminal, the clipboard and a picture."""

from __future__ import annotations

from textual.binding import Binding

from dpwatch.tui.draw.sentences import plural
from dpwatch.tui.render.ascii import key_to_ascii
from dpwatch.tui.render.private_api import CompositorUpdate, UpdatingApp
from dpwatch.tui.render.terminal_diff import ScreenBuffer


class Takeaway(UpdatingApp):
    """An app whose widgets can be copied as text (`copied`), and that may draw in ASCII only."""

    def __init__(self) -> None:
        super().__init__()
        self.screen_buffer = ScreenBuffer()

    def updated(self, update: CompositorUpdate) -> CompositorUpdate:
        """Only the cells that differ from those on the terminal."""
        return self.screen_buffer.narrowed(update)

    def action_copy(self) -> None:
        """Copy the row under the cursor, or the whole view, to the clipboard as text."""
        copied = getattr(self.screen_stack[0].focused, "copied", None)
        text = copied() if copied is not None else ""
        if text:
            self.copy_to_clipboard(text)
            lines = text.count("\n") + 1
            self.notify(f"copied {plural(lines, 'line')}", timeout=2, markup=False)

    def action_save(self) -> None:
        """Save the screen as an SVG file in the directory where dpwatch was started."""
        try:
            self.notify(f"saved {self.save_screenshot()}", timeout=5, markup=False)
        except OSError as error:
            reason = f"not saved: {error.strerror or error}"
            self.notify(reason, severity="error", timeout=5, markup=False)

    def get_key_display(self, binding: Binding) -> str:
        """A key as the footer writes it."""
        shown = super().get_key_display(binding)
        return key_to_ascii(shown) if self.has_class("ascii") else shown
