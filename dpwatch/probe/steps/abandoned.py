"""Passes that raised and after which the script went on, skipping their remaining collectives."""

from __future__ import annotations

from dpwatch.probe.exit_hooks import one_line

_WHY_CHARS = 160


class Abandoned:
    """Counts forward and backward passes that this rank abandoned.

    Whether a script goes on after an exception shows only when it starts the next pass.

    Attributes:
        count: Number of abandoned passes.
        step: Step of the first, None without one.
        why: Its exception, in one line.
    """

    __slots__ = ("_pending", "count", "step", "why")

    def __init__(self) -> None:
        self.count = 0
        self.step: int | None = None
        self.why = ""
        self._pending: tuple[int, str] | None = None

    def raised(self, step: int, error: BaseException | None) -> None:
        """A pass raised an exception."""
        why = ""
        if error is not None:  # not `str(error)`, which may run the script's own code
            told = next((each for each in error.args if type(each) is str), "")
            why = one_line(f"{type(error).__name__}: {told[:_WHY_CHARS]}".rstrip(": "), _WHY_CHARS)
        self._pending = step, why

    def script_continued(self) -> None:
        """The script starts another pass, or ends normally."""
        if self._pending is None:
            return
        (step, why), self._pending = self._pending, None
        self.count += 1
        if self.step is None:
            self.step, self.why = step, why
