"""`python -m dpwatch.trainer.series`: trains the runs that stdin lists as JSON, in turn.

For programs such as the demo, whose runs may differ in anything. Torch-free.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from .config import ConfigError, TrainConfig
from .console import print_end, print_error
from .forkserver import ForkServer
from .launch import StopSwitch, launch

USAGE = 2


@dataclass(kw_only=True, slots=True, frozen=True)
class Series:
    """Runs to train in turn.

    Attributes:
        runs: Each run's id and configuration.
        past_failures: Whether to continue after a failed run.
    """

    runs: Sequence[tuple[str, TrainConfig]]
    past_failures: bool = False

    def to_json(self) -> str:
        """Serializes it for the command's stdin."""
        runs = [{"run_id": run_id, "config": asdict(config)} for run_id, config in self.runs]
        return json.dumps({"runs": runs, "past_failures": self.past_failures})

    @classmethod
    def from_json(cls, text: str) -> Series:
        """Parses the output of `to_json`."""
        told = json.loads(text)
        runs = [(run["run_id"], TrainConfig(**run["config"])) for run in told["runs"]]
        return cls(runs=runs, past_failures=told["past_failures"])

    def train(self, stop: StopSwitch) -> int:
        """Trains them all; returns the first exit code that is not 0, else 0."""
        ids = [run_id for run_id, _ in self.runs]
        configs = [config for _, config in self.runs]
        if not self.past_failures:
            return self._launch(configs, ids, stop)
        first = 0
        with ForkServer() as server:
            for run_id, config in self.runs:
                code = self._launch([config], [run_id], stop, server)
                first = first or code
                if stop.signum is not None:
                    break
        return first

    def _launch(
        self,
        configs: Sequence[TrainConfig],
        run_ids: Sequence[str],
        stop: StopSwitch,
        server: ForkServer | None = None,
    ) -> int:
        """Trains these; each rank prints its progress, for the dashboard's view of its output."""
        return launch(
            configs,
            run_ids=run_ids,
            on_event=print_end,
            stop=stop,
            server=server,
            ranks_print=True,
        )


def main() -> int:
    """Reads stdin and trains; returns the exit code."""
    with ExitStack() as stack:
        stop = StopSwitch()
        stack.callback(stop.close)
        stack.enter_context(stop.on_signals())
        try:
            return Series.from_json(sys.stdin.read()).train(stop)
        except ConfigError as error:
            print_error(str(error))
            return USAGE


if __name__ == "__main__":
    sys.exit(main())
