"""`dpwatch stacks`: prints the Python stack of every rank, as text or JSON."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import msgspec

import dpwatch
from dpwatch.argument_parser import Commands
from dpwatch.cli.errors import FINE, NOTHING_TO_SHOW, USAGE, CommandError

if TYPE_CHECKING:
    from dpwatch.run.model.snapshot import RunView
    from dpwatch.viewer.watcher import Watcher

SCHEMA = "dpwatch.stacks/1"

PATIENCE_S = 10.0
"""How long to wait for ranks; the hub reports a rank as silent after three seconds."""

EXAMPLES = """\
examples:
  dpwatch stacks            every rank, grouped by identical stacks
  dpwatch stacks 3          every thread of rank 3
  dpwatch stacks --json     everything, for scripts
  ssh node1 dpwatch stacks  on another host

No process is stopped and no ptrace is needed: each rank is asked and answers by itself.
A rank that does not answer is shown with the reason, if it is known.
"""


class Thread(msgspec.Struct, frozen=True):
    """A thread; see `wire.messages.ThreadStack`."""

    name: str
    training: bool
    tid: int | None
    frames: list[str]
    theirs: int | None


class RankAnswer(msgspec.Struct, frozen=True):
    """A rank; see `run.model.stacks.RankStacks`."""

    rank: int
    host: str
    pid: int
    standing: str
    why: str
    age_s: float | None
    threads: list[Thread]
    left_out: int
    last_seen: str | None
    last_seen_s: float | None


class RunStacks(msgspec.Struct, frozen=True):
    """A run's ranks, or the requested ones."""

    run_id: str
    title: str
    ranks: list[RankAnswer]


class Stacks(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    schema: str
    version: str
    runs: list[RunStacks]


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "stacks",
        help="print the Python stacks of a live run's ranks",
        description="Prints the Python stacks of the ranks of all live runs on this host.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ranks", nargs="*", type=_rank, metavar="RANK", help="only these ranks")
    # Otherwise the main parser's `--once --json` would depend on the order of words.
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help=f"as a {SCHEMA} object",
    )
    parser.set_defaults(run=run)


def _rank(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a rank; use a number such as 0")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Asks, waits for the answers, and prints them."""
    from dpwatch.viewer.watcher import Watcher

    watcher = Watcher()
    try:
        views = _asked(watcher, tuple(options.ranks))
    finally:
        watcher.close()
    if options.json:
        from dpwatch.cli.output import formatted

        runs = [_answer(view, options.ranks) for view in views]
        print(formatted(Stacks(SCHEMA, dpwatch.__version__, runs)))
    else:
        from dpwatch.run.derive.stack_text import run_text

        print("\n\n".join(run_text(view, options.ranks) for view in views))
    return FINE


def _asked(watcher: Watcher, ranks: tuple[int, ...]) -> list[RunView]:
    """The live runs with their ranks' answers.

    Raises:
        CommandError: There is no live run, or none with these ranks.
    """
    from dpwatch.cli.watch import look

    look(watcher)
    before = {view.run.run_id: view for view in watcher.snapshot().runs if _lives(view)}
    if not before:
        raise CommandError(
            "no live run on this host; start one with `dpwatch run -- python train.py`",
            NOTHING_TO_SHOW,
        )
    known = {rank.rank for view in before.values() for rank in view.run.ranks}
    if unknown := set(ranks) - known:
        from dpwatch.run.model.ranks import name_ranks

        raise CommandError(
            f"there is no {name_ranks(unknown)}; this host has {name_ranks(known)}", USAGE
        )
    for run_id in before:
        watcher.ask_stacks(run_id, ranks)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        watcher.next(0.1)
        views = [view for view in watcher.snapshot().runs if view.run.run_id in before]
        done = all(_answered(view, before[view.run.run_id], ranks) for view in views)
        if done or time.monotonic() >= deadline:
            return views


def _lives(view: RunView) -> bool:
    return view.connection != "closed" and view.run.state in ("starting", "running", "hung")


def _answered(view: RunView, before: RunView, ranks: tuple[int, ...]) -> bool:
    """Whether the result is complete: new answers, or the reasons why there are none."""
    if view.connection == "closed":
        return True
    asked = {entry.rank: entry.asked for entry in before.stacks}
    wanted = [entry for entry in view.stacks if not ranks or entry.rank in ranks]
    return bool(wanted) and all(
        entry.standing == "ended"
        or (entry.asked > asked.get(entry.rank, 0) and entry.standing in ("answered", "silent"))
        for entry in wanted
    )


def _answer(view: RunView, ranks: list[int]) -> RunStacks:
    return RunStacks(
        run_id=view.run.run_id,
        title=view.run.title,
        ranks=[
            RankAnswer(
                rank=entry.rank,
                host=entry.host,
                pid=entry.pid,
                standing=entry.standing,
                why=entry.why,
                age_s=entry.age_s,
                threads=[
                    Thread(t.name, t.training, t.tid, t.frames, t.theirs) for t in entry.threads
                ],
                left_out=entry.left_out,
                last_seen=entry.seen_at or None,
                last_seen_s=entry.seen_s,
            )
            for entry in view.stacks
            if not ranks or entry.rank in ranks
        ],
    )
