"""Combining a rank's goodbye with its process's exit, and which rank failed first."""

import signal

import pytest

from dpwatch.hub.cluster.merge import merge
from dpwatch.run.derive.summarize import summarize
from dpwatch.run.diagnose import rank_lost
from dpwatch.run.state import exits
from dpwatch.run.state.apply import apply
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import INTERRUPTED, Bye, Command
from tests.frames import MS, START_NS, batch, hello, played, step

KILLED = "killed by SIGKILL after its goodbye"


@pytest.mark.parametrize(
    ("code", "state", "words"),
    [
        (None, "lost", "process 7 exited without reporting"),
        (0, "finished", ""),
        (3, "failed", "exit code 3: process 7 exited without reporting"),
        (-9, "lost", "process 7 was killed by SIGKILL"),
    ],
)
def test_an_end_without_a_goodbye(code, state, words):
    assert exits.combine_ends(None, exits.observed_end(7, code)) == Bye(state, words, code)


@pytest.mark.parametrize(
    ("own", "code", "told"),
    [
        (Bye("finished"), None, Bye("finished")),
        (Bye("finished"), 0, Bye("finished", "", 0)),
        (Bye("finished"), 1, Bye("failed", "exit code 1", 1)),
        (Bye("finished"), -15, Bye("finished", "", -15)),  # a pool ends its workers
        (Bye("finished", then="exit"), -9, Bye("failed", KILLED, -9)),
        (Bye("finished"), -9, Bye("failed", KILLED, -9)),
        (Bye("finished", then="next"), 1, Bye("finished", "", 1, "next")),
        (Bye("failed", "why"), 0, Bye("failed", "why", 0)),
        (Bye("lost", "the probe turned itself off: x"), 0, Bye("finished", "", 0)),
    ],
)  # fmt: skip
def test_a_goodbye_and_an_exit_are_combined(own, code, told):
    assert exits.combine_ends(own, exits.observed_end(7, code)) == told
    assert exits.combine_ends(own, told) == told  # a hub says what both come to


def run_of(*byes, command=None):
    """Ranks that end one after another, each with a goodbye and then an observed exit."""
    frames = [batch(hello(len(byes)), step(0), rank=r) for r in range(len(byes))]
    for n, (r, own, code) in enumerate(byes, 1):
        now_ns = START_NS + 1000 * n * MS
        if own is not None:
            frames.append(batch(own, rank=r, seq=1, now_ns=now_ns))
        told = exits.combine_ends(own, exits.observed_end(1000 + r, code))
        frames.append(batch(told, rank=r, seq=-1, now_ns=now_ns + MS))
    if command is not None:
        frames.append(batch(command, rank=-1, seq=-1, now_ns=START_NS + 9000 * MS))
    return played(frames)


def test_the_rank_that_failed_by_itself_comes_first():
    peer = "RuntimeError: Connection closed by peer"
    state = run_of(
        (0, Bye("failed", peer), 1),
        (1, Bye("finished", then="exit"), 1),
        (2, Bye("finished", then="exit"), -signal.SIGTERM),
    )
    assert [rank.rank for rank in state.gone] == [1, 0, 2]
    run = summarize(state)
    assert (run.state, run.reason) == ("failed", "rank 1: exit code 1")
    assert [(row.exit, row.state) for row in run.ranks] == [(1, "failed")] * 2 + [(-15, "failed")]
    assert rank_lost.rule(run, state).ranks == [1]


def test_the_order_of_goodbye_and_exit_does_not_matter():
    """A frame in flight when the process ended does not discard the exit code."""
    told = exits.observed_end(1000, -9)
    state = played(
        [
            batch(hello(), step(0)),
            batch(told, seq=-1, now_ns=START_NS + MS),
            batch(step(1), seq=1, now_ns=START_NS + 2 * MS),
        ]
    )
    assert state.ranks[0].bye == told
    apply(state, batch(Bye("finished"), seq=2, now_ns=START_NS + 3 * MS))
    assert state.ranks[0].bye == Bye("failed", "killed by SIGKILL after its goodbye", -9)


def test_a_rank_that_was_only_silent_is_back_with_its_next_frame():
    state = played([batch(hello(), step(0)), batch(exits.observed_end(1000, None), seq=-1)])
    assert summarize(state).state == "lost"
    apply(state, batch(step(1), seq=1))
    assert summarize(state).ranks[0].state == "running"


def test_a_rank_that_was_idle_may_resume():
    state = played([batch(hello(), step(0)), batch(Bye("finished", then="idle"), seq=1)])
    assert summarize(state).state == "finished"
    apply(state, batch(step(1), seq=2))
    assert summarize(state).ranks[0].state == "running"


def test_ctrl_c_without_dpwatch_run_stops_the_run():
    state = run_of(
        (0, Bye("failed", "RuntimeError: Connection closed by peer"), 1),
        (1, Bye("failed", INTERRUPTED), -signal.SIGINT),
    )
    run = summarize(state)
    assert (run.state, run.reason) == ("failed", "stopped by Ctrl-C")
    assert rank_lost.rule(run, state) is None


@pytest.mark.parametrize(("exit_code", "state"), [(130, "failed"), (0, "finished")])
def test_ranks_that_finish_after_ctrl_c_were_stopped(exit_code, state):
    """Ranks of mp.spawn catch it and return; a script that saves its state and exits finished."""
    command = Command(exit_code, START_NS + 1000 * MS)
    run = summarize(run_of((0, Bye("finished", then="exit"), 0), command=command))
    assert run.state == state
    assert run.reason == ("stopped by Ctrl-C" if exit_code else "")


def test_a_run_that_was_over_before_ctrl_c_stays_finished():
    command = Command(130, START_NS + 60_000 * MS)
    assert summarize(run_of((0, Bye("finished"), 0), command=command)).state == "finished"


def test_a_failure_before_ctrl_c_stays_the_cause():
    state = run_of((0, Bye("failed", "ValueError: x"), 1), (1, Bye("failed", INTERRUPTED), -2))
    assert summarize(state).reason == "rank 0: ValueError: x"


def test_a_command_failing_after_the_run_does_not_fail_the_run():
    state = run_of((0, Bye("finished"), 0), command=Command(exit=2))
    run = summarize(state)
    assert (run.state, run.command_exit) == ("finished", 2)
    assert run.note == "this run finished; the command ended with exit code 2 afterwards"


@pytest.mark.parametrize(("then", "state"), [("idle", "failed"), ("next", "finished")])
def test_a_failed_command_fails_a_run_whose_exits_are_unknown(then, state):
    """A pool's worker catches what a task raises, and is then ended by its pool."""
    state_ = run_of((0, Bye("finished", then=then), -15), command=Command(exit=1))
    assert summarize(state_).state == state


def test_a_head_keeps_what_a_nodes_new_hub_does_not_know():
    head, part = RunState("run"), run_of((0, Bye("finished"), 1))
    merge(head, part, "here")
    again = played([batch(hello(), step(0)), batch(Bye("finished"), seq=1)])  # it saw no exit
    merge(head, again, "here")
    assert head.ranks[0].bye == Bye("failed", "exit code 1", 1)


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (63, "signal 63")])
def test_signals_have_names(number, name):
    assert exits.signal_name(number) == name
