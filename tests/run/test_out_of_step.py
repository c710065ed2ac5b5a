"""`desync` without a failing call: ranks that are out of step, or only seem to be."""

import pytest

from dpwatch.run.derive.summarize import summarize
from dpwatch.run.diagnose import desync
from dpwatch.run.state.apply import apply
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import (
    HUB_RANK,
    Beat,
    Bye,
    Collective,
    GroupMembers,
    Meeting,
    Position,
    Step,
    Tick,
    Unfinished,
)
from tests.frames import MS, START_NS, batch, hello

WORLD = "default"
SECOND = 1_000_000_000


class Run:
    """Ranks that call one all_reduce per step, with their own counts of steps."""

    def __init__(self, ranks=3):
        self.state = RunState("run")
        self.ranks = ranks
        self.seq = 0
        self.now_ns = START_NS
        for r in range(ranks):
            apply(self.state, batch(hello(ranks), rank=r))

    def step(self, *steps, times=1, op="all_reduce"):
        """Adds calls of all ranks: rank r starts in step `steps[r]` and advances with each call."""
        for i in range(times):
            self.now_ns += 100 * MS
            for r, step in enumerate(steps):
                call = Collective(
                    step + i, op, WORLD, self.ranks, self.seq, 400, self.now_ns, dtype="float32"
                )
                ended = Step(0, step + i, self.now_ns - MS, self.now_ns)
                apply(self.state, batch(call, ended, rank=r, now_ns=self.now_ns))
            self.seq += 1
        return self

    def stand(self, *steps, done=False, seconds=6, op="barrier"):
        """Adds heartbeats of all ranks that are stuck in one more call."""
        issued_ns = self.now_ns
        self.now_ns += seconds * SECOND
        for r, step in enumerate(steps):
            place = Position(WORLD, self.ranks, self.seq, op, 0, "", issued_ns, step, done)
            beat = Beat(step, "", None, None, f"train.py:{r} main", seconds * SECOND, [place])
            apply(self.state, batch(beat, rank=r, now_ns=self.now_ns))
        return self

    def say(self, r, record):
        apply(self.state, batch(record, rank=r, now_ns=self.now_ns))
        return self

    def finding(self):
        apply(self.state, batch(Tick(), rank=HUB_RANK, now_ns=self.now_ns))
        return desync.rule(summarize(self.state), self.state)


def test_a_rank_that_got_a_step_ahead_is_reported_with_the_step():
    run = Run().step(0, 0, 0, times=12)
    assert run.finding() is None
    run.step(12, 13, 12, times=4)
    assert run.finding() is None  # it may be nothing
    run.step(16, 17, 16, times=4)
    found = run.finding()
    assert (found.kind, found.severity, found.ranks) == ("desync", "critical", [1])
    assert (found.began, found.evidence["pattern"]) == (12, "shift")
    assert found.evidence["ahead_steps"] == {"1": 1}
    assert found.text.startswith("Rank 1 has been 1 step ahead of the others since step 12")
    run.step(20, 20, 20, times=9)  # back in step
    assert run.finding() is None or run.finding().evidence["ahead_steps"] != {"1": 1}


def test_of_two_ranks_one_is_said_to_be_ahead_of_the_other():
    run = Run(2).step(0, 0, times=10).step(11, 10, times=8)
    assert (run.finding().ranks, run.finding().began) == ([0], 10)


def test_a_rank_that_was_always_a_step_apart_is_in_step():
    run = Run().step(1, 0, 0, times=40)
    assert run.finding() is None
    assert run.stand(41, 40, 40).finding() is None


def test_a_server_that_takes_no_steps_is_in_step_while_it_works_and_at_the_end():
    run = Run()
    for i in range(120):
        run.step(0, i, i)
    assert run.finding() is None
    assert run.stand(0, 120, 120, done=True).finding() is None
    assert run.stand(0, 120, 120).finding() is None  # where nobody knows that it is over


def test_ranks_that_shadow_others_in_join_are_in_step():
    """In DDP's `join`, a rank without batches keeps calling, without steps."""
    run = Run().step(0, 0, 0, times=20)
    for i in range(20, 26):
        run.step(20, i, i)
    assert run.finding() is None
    assert run.stand(20, 26, 26).finding() is None


def test_an_erratic_offset_is_no_desync():
    run = Run()
    for i in range(30):
        run.step(6 * i, 6 * i + i % 2, 6 * i, times=6)
    assert run.finding() is None


def test_ranks_that_rarely_meet_may_step_independently():
    """As in local SGD with a different number of steps per rank."""
    run = Run()
    for i in range(8):
        run.step(8 * i, 8 * i, 8 * i)
    for i in range(8, 20):
        run.step(8 * i, 8 * i + 3, 8 * i)
    assert run.finding() is None


def test_ranks_stuck_in_a_call_in_different_steps_are_reported():
    run = Run().step(0, 0, 0, times=20)
    assert run.stand(20, 21, 20, done=True).finding() is None  # it is over
    found = run.stand(20, 21, 20).finding()
    assert (found.ranks, found.evidence["seq"]) == ([1], 20)


def test_the_oldest_call_in_flight_is_compared_too():
    """Rank 0 validates alone, so the others' barrier matches its broadcast of buffers."""
    run = Run().step(0, 0, 0, times=15)
    at = START_NS + 1500 * MS
    for r in (1, 2):
        place = Position(WORLD, 3, 15, "barrier", 0, "", at, 15, False, "train.py:39")
        run.say(r, Beat(15, "", positions=[place]))
    strayed = Unfinished(15, "broadcast", 2048, "float32", at, 15, "train.py:38")
    place = Position(
        WORLD, 3, 16, "broadcast", 2048, "float32", at + 5, 15, False, "train.py:38", [], 0, strayed
    )
    found = run.say(0, Beat(15, "forward", positions=[place])).finding()
    assert (found.ranks, found.evidence["seq"]) == ([0], 15)
    assert found.text.startswith(
        "Rank 0 called broadcast of 2.00 KiB float32 in step 15 at train.py:38 where the others "
        "called barrier of 0 B in step 15 at train.py:39 (group default, call 15). "
    )


def abandoned(count, step=12, now=13):
    why = "OutOfMemoryError: out of memory: tried to allocate 9.00 GiB"
    return Beat(now, "", abandoned=count, abandoned_step=step if count else None,
                abandoned_why=why if count else "")  # fmt: skip


def test_a_pass_that_one_rank_abandoned_is_reported():
    run = Run().step(0, 0, 0, times=13)
    for r in range(3):
        run.say(r, abandoned(int(r == 1)))
    assert run.finding() is None  # the others may not have told yet
    run.step(13, 13, 13, times=2)
    found = run.finding()
    assert (found.ranks, found.began, found.severity) == ([1], 12, "critical")
    assert found.evidence["pattern"] == "skipped"
    assert "OutOfMemoryError" in found.text
    assert "in step 12" in found.text


def test_a_pass_that_all_ranks_abandoned_is_fine():
    run = Run().step(0, 0, 0, times=20)
    for r in range(3):
        run.say(r, abandoned(2))
    assert run.finding() is None


def test_a_lone_process_may_skip_what_it_likes():
    run = Run(1).step(0, times=20)
    assert run.say(0, abandoned(1)).finding() is None


def grouped(r, members, still_s=0.0, *, meets=False):
    told = hello(4, groups=[] if meets else [GroupMembers("1", members)])
    meeting = Meeting("new_group", 2, "1", members) if meets else None
    beat = Beat(0, "", None, None, "train.py:22 <module>", int(still_s * SECOND), meeting=meeting)
    return [(r, told), (r, beat)]


@pytest.mark.parametrize("how", ["still", "gave up"])
def test_ranks_that_disagree_about_a_groups_members_are_reported(how):
    run = Run(4)
    told = [*grouped(0, [0, 3]), *grouped(1, [1, 2], 4.0, meets=True), *grouped(2, [1, 2]),
            *grouped(3, [0, 3], 4.0, meets=True)]  # fmt: skip
    for r, record in told:
        run.say(r, record)
    if how == "gave up":
        for r in (1, 3):
            run.say(r, Bye("failed", "RuntimeError: [gloo/x.cc] Connection reset by peer"))
    found = run.finding()
    assert (found.ranks, found.evidence["pattern"]) == ([0, 1, 2, 3], "members")
    assert "ranks 0, 3 have [0, 3], ranks 1-2 have [1, 2]" in found.text
    assert "made at train.py:22 <module>" in found.text


def test_disjoint_groups_of_equal_name_are_not_reported():
    run = Run(4)
    for r in range(4):
        for each, record in grouped(r, [0, 3] if r in (0, 3) else [1, 2]):
            run.say(each, record)
    assert run.finding() is None
