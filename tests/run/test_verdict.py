"""The verdict names the cause and not the first victim, also after later ends."""

import pytest

from dpwatch.run.derive.summarize import summarize
from dpwatch.run.diagnose.advance import advance
from dpwatch.run.state.encoding import decode, encode
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import HUB_RANK, Beat, Bye, Step, Tick
from tests.frames import MS, START_NS, batch, hello
from tests.run.test_hang import SECOND, WORLD, at

TIMED_OUT = Bye("failed", "RuntimeError: [gloo/transport/tcp/pair.cc] Timed out waiting 25000ms")
RESET = Bye("failed", "RuntimeError: [gloo/transport/tcp/pair.cc] Connection closed by peer")
STOPPED = Bye("lost", "process 1 was killed by SIGTERM", -15)


class Script:
    """A run whose ranks' records a test chooses second by second."""

    def __init__(self, ranks=3, steps=10):
        self.state = RunState("run")
        self.now_ns = START_NS + steps * 100 * MS
        self.moved_ns = {}
        self.run = None
        for r in range(ranks):
            done = [Step(0, i, START_NS + i * 100 * MS, START_NS + (i + 1) * 100 * MS)
                    for i in range(steps)]  # fmt: skip
            self.say(r, hello(ranks), *done)

    def say(self, r, *records):
        seq = -1 if r == HUB_RANK else 0
        advanced = advance(self.state, batch(*records, rank=r, seq=seq, now_ns=self.now_ns))
        self.run = advanced or self.run
        return self

    def beat(self, r, *positions, still_s=0.0, where="", **told):
        """Adds a heartbeat of a rank with these positions in its groups."""
        still_ns = int(still_s * SECOND)
        where = where or f"train.py:{r} main"
        beat = Beat(10, "", None, None, where, still_ns, list(positions), **told)
        return self.say(r, beat)

    def tick(self, seconds=1.0):
        self.now_ns += int(seconds * SECOND)
        return self.say(HUB_RANK, Tick())

    def end(self, r, bye):
        return self.say(r, bye)

    def said(self):
        """Severity, kind and ranks of current findings; checks that they survive encoding."""
        again = summarize(decode(encode(self.state)))
        assert (again.state, again.reason) == (self.run.state, self.run.reason)
        return [(d.severity, d.kind, d.ranks) for d in self.run.diagnoses]


def stuck(script, missing=1, seconds=6, **told):
    """All ranks have entered call 20 except one, which is stuck."""
    for second in range(seconds):
        for r in script.state.ranks:
            place = at(WORLD, 20 - (r == missing), ranks=3, ms=0, done=r == missing)
            script.beat(r, place, still_s=second, **(told if r == missing else {}))
        script.tick()


def test_the_diagnosis_at_the_first_give_up_stays():
    script = Script()
    stuck(script)
    assert script.said() == [("critical", "hang", [1])]
    assert (script.run.state, script.run.reason) == (
        "hung", "Rank 1 has not entered all_reduce at train.py:20 (group default, call 20)"
    )  # fmt: skip
    before = script.run.diagnoses[0]
    script.end(0, TIMED_OUT)
    script.beat(1, at(WORLD, 20, ranks=3), where="train.py:99 main")  # it has got free, too late
    script.end(2, RESET).end(1, STOPPED).tick(10)
    assert script.said() == [("critical", "hang", [1])]
    assert script.run.diagnoses[0].text == before.text
    assert script.run.state == "failed"
    assert script.run.reason == (
        "Rank 1 has not entered all_reduce at train.py:20 (group default, call 20); "
        "ranks 0, 2 gave up waiting"
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_a_rank_that_finished_while_others_still_call_is_the_cause(order):
    """In either order: its goodbye first, or those of its peers, whose connections close."""
    script = Script()
    for r in range(3):
        script.beat(r, at(WORLD, 19, ranks=3, ms=0, done=True))
    for r in order:
        if r == 1:
            script.end(1, Bye("finished"))
        else:
            script.beat(r, at(WORLD, 20, ranks=3, ms=900, done=r == 0)).end(r, RESET)
    assert script.said() == [("critical", "hang", [1])]
    found = script.run.diagnoses[0]
    assert found.text.startswith("Rank 1 has finished after 10 steps while the others go on. ")
    assert found.evidence["doing"] == {"1": "finished"}
    assert "rank 1 " in script.run.reason.lower()
    assert {a.kind for a in script.run.alerts} == {"hang"}  # nobody was blamed meanwhile


def test_a_rank_without_time_to_enter_the_call_is_not_blamed():
    script = Script()
    for r in range(3):
        script.beat(r, at(WORLD, 19, ranks=3, ms=0, done=True))
    script.now_ns += 400 * MS
    script.beat(0, at(WORLD, 20, ranks=3, ms=300)).end(0, RESET)
    assert script.said() == []
    assert script.run.reason.startswith("rank 0 gave up waiting: RuntimeError")
    script.tick(4)
    # The two others have been silent since, so their state is unknown.
    assert [d[1] for d in script.said()] in (["rank_lost"], ["hang"])


def test_a_ranks_own_error_is_the_cause_and_not_those_that_gave_up():
    script = Script()
    script.end(0, RESET).end(2, Bye("failed", "ValueError: a bad sample")).end(1, RESET)
    assert script.said() == [("critical", "rank_lost", [2])]
    assert script.run.reason == "rank 2: ValueError: a bad sample"
    assert script.run.diagnoses[0].evidence["also"] == [0, 1]


def test_a_stuck_rank_stays_the_cause_after_it_is_killed():
    script = Script()
    stuck(script)
    script.end(1, Bye("lost", "process 1 was killed by SIGKILL", -9)).end(0, RESET).end(2, RESET)
    assert script.said() == [("critical", "hang", [1]), ("critical", "rank_lost", [1])]


@pytest.mark.parametrize("end", [Bye("failed", "exit code 1", 1), Bye("lost", "abort", -6)])
def test_a_rank_that_quits_or_aborts_waiting_for_a_finished_one_gave_up(end):
    """For example scripts that print errors and exit, and watchdogs that abort."""
    script = Script()
    for r in range(3):
        script.beat(r, at(WORLD, 19, ranks=3, ms=0, done=True))
    script.end(1, Bye("finished"))
    for r in (0, 2):
        script.beat(r, at(WORLD, 20, ranks=3, ms=900)).end(r, end)
    assert script.said() == [("critical", "hang", [1])]
    assert script.run.state == "failed"
    assert script.run.reason.endswith("ranks 0, 2 gave up waiting")


def test_a_rank_that_quits_by_itself_is_lost():
    script = Script()
    for r in range(3):
        script.beat(r, at(WORLD, 20, ranks=3, ms=0, done=r != 2))
    script.end(2, Bye("failed", "exit code 3", 3)).end(0, RESET).end(1, RESET)
    assert script.said() == [("critical", "rank_lost", [2])]


def test_a_stopped_run_that_hung_keeps_the_hang_as_reason():
    script = Script()
    stuck(script)
    for r in range(3):
        script.end(r, STOPPED)
    assert script.said() == [("critical", "hang", [1])]
    assert script.run.reason.startswith("Rank 1 has not entered all_reduce")


def test_a_hang_that_ended_is_not_the_cause_of_later_failures():
    script = Script()
    stuck(script)
    for second in range(5):
        for r in range(3):
            script.beat(r, at(WORLD, 30 + second, ranks=3, ms=6000 + 1000 * second, done=True))
        script.tick()
    script.end(2, Bye("failed", "ValueError: a bad sample")).end(0, RESET).end(1, RESET)
    assert script.said() == [("critical", "rank_lost", [2])]
