"""Progress on stderr of a command without a screen that trains under several strategies."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dpwatch.demo.session import Session
from dpwatch.run.model.snapshot import Run


def teller(session: Session) -> Callable[[Run], None]:
    """Prints that training starts. Returns: a function to call with each run that has ended."""

    def say(number: int, state: str) -> None:
        gpus = session.configs[number].gpus
        where = f"{number + 1}/{len(session.names)}: {session.names[number]} on {gpus} devices"
        print(f"{where}: {state}", file=sys.stderr, flush=True)

    def tell(run: Run) -> None:
        say(session.run_ids.index(run.run_id), run.state)

    say(0, "starting; importing torch takes a few seconds")
    return tell
