"""Searches for the largest batches, in a process beside a session's trainer.

The process exists from the session's start and waits for a start signal, so it does not disturb the
training. Ending it ends the run it is trying a batch with.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING

from msgspec.structs import replace

from dpwatch.run.derive.comparison import labels
from dpwatch.run.model.largest_batch import LargestBatch
from dpwatch.run.model.snapshot import Progress, Snapshot
from dpwatch.tui.draw.format import size

from .children import Child
from .max_batch import Found, News, SearchError, StoppedError, Trying, find_all

if TYPE_CHECKING:
    from dpwatch.trainer.config import TrainConfig


class BatchSearch:
    """The session's end of the search.

    Args:
        configs: What to search, in this order, each with `gpu_mem_bytes`.

    Attributes:
        found: Results so far, by index of the configuration.
        error: Why the search ended early, "" if it did not.
    """

    def __init__(self, configs: Sequence[TrainConfig]) -> None:
        self._configs = list(configs)
        self.found: dict[int, LargestBatch] = {}
        self.error = ""
        self._trying: Trying | None = None
        self._begun = False
        self._child: Child | None = None
        self._control: Connection[list[TrainConfig], News] | None = None

    def open(self) -> None:
        """Starts the process, which waits."""
        self._control, theirs = Pipe()
        with theirs:
            code = f"from {__name__} import serve; serve({theirs.fileno()})"
            self._child = Child(["-c", code], pass_fds=[theirs.fileno()])

    def begin(self) -> None:
        """Starts the search; a second call does nothing."""
        if self._control is None or self._begun:
            return
        self._begun = True
        try:
            self._control.send(self._configs)
        except OSError:
            self._give_up()

    def poll(self) -> None:
        """Processes the messages received meanwhile."""
        try:
            while self._control is not None and not self.error and self._control.poll():
                self._on_message(self._control.recv())
        except (EOFError, OSError):
            self._give_up()

    def _on_message(self, news: News) -> None:
        if isinstance(news, Trying):
            self._trying = news
        elif isinstance(news, Found):
            self.found[news.number] = news.largest

    def _give_up(self) -> None:
        """Its process has exited, which is an error only if results are missing."""
        if len(self.found) < len(self._configs):
            why = (self._child.last_stderr_line if self._child else "") or "its process was killed"
            self.error = f"the search for the largest batch ended early: {why}"
        self._control = None

    def shown(self, snapshot: Snapshot, run_ids: Sequence[str]) -> Snapshot:
        """The snapshot with the results so far, and the search's progress.

        Args:
            snapshot: Of the runs.
            run_ids: Their ids in the order of the configurations.
        """
        by_run = {run_ids[number]: largest for number, largest in self.found.items()}
        runs = tuple(
            replace(view, largest_batch=by_run.get(view.run.run_id)) for view in snapshot.runs
        )
        progress = Progress(
            names=tuple(labels(self._configs)), done=len(self.found), within=self._within()
        )
        return replace(
            snapshot,
            runs=runs,
            search=None if self.error else progress,
            notice=snapshot.notice or self.error,
        )

    def _within(self) -> str:
        number = len(self.found)
        if self._trying is None or self._trying.number != number:
            return ""
        return (
            f"trying {self._trying.batch} a device in {size(self._configs[number].gpu_mem_bytes)}"
        )

    def close(self) -> None:
        """Ends the search and the run it is trying."""
        if self._child is not None:
            self._child.end()
        if self._control is not None:
            self._control.close()


def serve(fd: int) -> None:
    """The process: waits for the start signal, searches, and reports."""
    control: Connection[News, list[TrainConfig]] = Connection(fd)
    try:
        configs = control.recv()
    except EOFError:
        return  # the session has ended
    try:
        find_all(configs, control.send)
    except SearchError as error:
        sys.exit(str(error))
    except StoppedError as error:
        sys.exit(128 + error.signum)
