"""Where the dashboard's snapshots come from, and how they reach it."""

from __future__ import annotations

from typing import Protocol

from textual.message import Message

from dpwatch.run.model.snapshot import Snapshot


class SnapshotSource(Protocol):
    """A stream of snapshots, read only by one worker thread of the dashboard."""

    def next(self, timeout_s: float) -> Snapshot | None:
        """Wait for the next snapshot, at most `timeout_s` seconds.

        Returns:
            The newest snapshot, or None when nothing new came.
        """
        ...

    def close(self) -> None:
        """Free what the source holds. Called once, from the thread that called `next`."""
        ...


class Arrived(Message):
    """The source gave a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        super().__init__()


class SourceFailed(Message):
    """The source raised; the screen keeps its content."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__()
