"""A demo session: a trainer process that runs strategies in turn, and a watcher of its runs.

The session owns what it starts: leaving it ends the trainer, its ranks and its hubs, whatever their
state; so does killing the session's process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING

from msgspec.structs import replace

from dpwatch.hub import processes
from dpwatch.run.derive.comparison import labels
from dpwatch.run.model.snapshot import ENDED, Progress, Run, Snapshot
from dpwatch.runtime.paths import RunDir, clean_run_id, run_dir, runtime_dir
from dpwatch.runtime.spawn import ensure_hub
from dpwatch.trainer.series import Series
from dpwatch.viewer.watcher import Watcher

from .batch_search import BatchSearch
from .children import PATIENCE_S, Child
from .lessons import lesson

if TYPE_CHECKING:
    from dpwatch.trainer.config import TrainConfig

    from .scenarios import Scenario

SETTLE_S = 5.0
"""Time for a run's last records to arrive after its trainer has ended."""

AT_WORK = ("starting", "running", "hung")
"""States of a run that has not ended: one that hangs may recover."""

TRAINING_FAILED = 1
"""The trainer's exit code if a run failed."""


class Session:
    """Trains each configuration in turn. A context manager.

    Args:
        configs: What to train.
        past_failures: Whether to continue after a failed run.
        search: Configurations to find the largest batch of when training is done: none, or one for
            each of `configs`.
        scenario: The scenario that the runs belong to.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        *,
        past_failures: bool = False,
        search: Sequence[TrainConfig] = (),
        scenario: Scenario | None = None,
    ) -> None:
        self.configs = list(configs)
        stamp = f"{os.getpid()}-{time.time_ns() // 1_000_000 % 1_000_000}"
        self.run_ids = [
            clean_run_id(f"demo-{number}-{config.strategy}-{stamp}")
            for number, config in enumerate(self.configs, start=1)
        ]
        self.scenario = scenario
        self._past_failures = past_failures
        self._place = runtime_dir()
        self._input = tempfile.TemporaryFile("w+", prefix="dpwatch-demo-")  # noqa: SIM115
        self._trainer: Child | None = None
        self.search = BatchSearch(search) if search else None
        self._watcher = Watcher(frozenset(self.run_ids).__contains__)
        self.source = DemoSource(self, self._watcher)

    def __enter__(self) -> Session:
        self._trainer = Child(["-m", "dpwatch.trainer.series"], stdin=self._write_input())
        if self.search is not None:
            self.search.open()
        # The first run's hub starts while torch is imported; later runs' probes start their own.
        ensure_hub(run_dir(self.run_ids[0]))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._trainer is not None:
            self._trainer.end()
        if self.search is not None:
            self.search.close()
        self._stop_hubs()
        self._watcher.close()
        self._input.close()

    def _write_input(self) -> IO[str]:
        """Writes the trainer's input to a file, and returns it for reading."""
        runs = list(zip(self.run_ids, self.configs, strict=True))
        self._input.write(Series(runs=runs, past_failures=self._past_failures).to_json())
        self._input.seek(0)
        return self._input

    @property
    def names(self) -> list[str]:
        """Name of each run: its strategy, and its label if it has one."""
        return [f"{each.strategy} {each.label}".rstrip() for each in self.configs]

    @property
    def exit_code(self) -> int | None:
        """The trainer's exit code, None while it trains."""
        return self._trainer.exit_code if self._trainer else None

    @property
    def failed(self) -> bool:
        """Whether the trainer ended with an error."""
        return self.exit_code not in (None, 0)

    @property
    def trained(self) -> bool:
        """Whether the trainer has finished all runs."""
        return self.exit_code is not None and not self.aborted

    @property
    def aborted(self) -> bool:
        """Whether the trainer ended before it finished all runs."""
        return self.failed and not (self._past_failures and self.exit_code == TRAINING_FAILED)

    @property
    def error(self) -> str:
        """The trainer's last error line, "" if it wrote none."""
        said = self._trainer.last_stderr_line if self._trainer else ""
        return said.removeprefix("dpwatch.trainer: ")

    def wait(self, tell: Callable[[Run], None] | None = None) -> int:
        """Follows the training to its end.

        Args:
            tell: Called with each run when it has ended.

        Returns:
            The trainer's exit code, 128 + n if signal n ended it.
        """
        told: set[str] = set()

        def follow() -> None:
            self._watcher.next(0.25)
            for run in self._ended() if tell else ():
                if tell and run.run_id not in told:
                    told.add(run.run_id)
                    tell(run)

        while self.exit_code is None:
            follow()
        deadline = time.monotonic() + SETTLE_S
        while not self._all_ended() and time.monotonic() < deadline:
            follow()
        code = self.exit_code or 0
        return 128 - code if code < 0 else code

    def runs(self) -> list[Run]:
        """The runs that have started, in the order of the configurations."""
        runs = [view.run for view in self._watcher.snapshot().runs]
        return sorted(runs, key=lambda run: self.run_ids.index(run.run_id))

    def _ended(self) -> list[Run]:
        return [run for run in self.runs() if run.state not in AT_WORK]

    def _all_ended(self) -> bool:
        """Whether nothing more is to come, and every rank's end, even by a kill, is known."""
        if len(self._ended()) < len(self.run_ids) and not self.aborted:
            return False
        return all(rank.state in ENDED for run in self.runs() for rank in run.ranks)

    def _stop_hubs(self) -> None:
        places = [RunDir(self._place / run_id) for run_id in self.run_ids]
        told: set[int] = set()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            alive = [place for place in places if place.has_hub()]
            for place in alive:
                info = place.read_info()  # None while it is starting
                if info is not None and info.hub_pid not in told:
                    told.add(info.hub_pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(info.hub_pid, signal.SIGTERM)
            # A hub releases its lock some time before its process exits.
            if not alive and not any(processes.runs(pid) for pid in told):
                break
            time.sleep(0.01)
        for place in places:
            place.remove()


class DemoSource:
    """The watcher's snapshots, with a notice of the session's progress."""

    def __init__(self, session: Session, watcher: Watcher) -> None:
        self._session = session
        self._watcher = watcher

    def next(self, timeout_s: float) -> Snapshot | None:
        """See `Watcher.next`."""
        snapshot = self._watcher.next(timeout_s)
        if snapshot is None:
            return None
        progress = self._progress(snapshot)
        told = replace(snapshot, notice=self._notice(snapshot), progress=progress)
        search = self._session.search
        if search is None:
            return told
        if self._session.trained and progress.done == len(progress.names):
            search.begin()
        search.poll()
        return search.shown(told, self._session.run_ids)

    def ask_stacks(self, run_id: str, ranks: Sequence[int] = ()) -> None:
        """See `Watcher.ask_stacks`."""
        self._watcher.ask_stacks(run_id, ranks)

    @property
    def interval_s(self) -> float:
        """See `Watcher.interval_s`."""
        return self._watcher.interval_s

    @interval_s.setter
    def interval_s(self, seconds: float) -> None:
        self._watcher.interval_s = seconds

    def _progress(self, snapshot: Snapshot) -> Progress:
        names = tuple(labels(self._session.configs))
        at_work = [v for v in snapshot.runs if v.run.state in AT_WORK]
        done = len(snapshot.runs) - len(at_work)
        over = self._session.trained and not at_work
        scenario = self._session.scenario
        return Progress(
            names=names,
            done=len(names) if over else done,
            metric=scenario.metric if scenario else "",
            lesson=lesson(scenario.name, self._session.runs()) if scenario and over else "",
        )

    def _notice(self, snapshot: Snapshot) -> str:
        if snapshot.notice:
            return snapshot.notice
        if self._session.aborted:
            return self._session.error or "the training failed"
        names = self._session.names
        begun = len(snapshot.runs)
        if begun < len(names) and all(v.run.state == "finished" for v in snapshot.runs):
            return f"starting {names[begun]} on {self._session.configs[begun].gpus} devices …"
        return ""

    def close(self) -> None:
        """Does nothing: the session closes its watcher."""
