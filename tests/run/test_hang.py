"""`hang`, `desync` and `rank_lost`, from chosen heartbeats, calls and goodbyes."""

import signal

import msgspec
import pytest

from dpwatch.run.derive.summarize import summarize
from dpwatch.run.diagnose import desync, hang, rank_lost
from dpwatch.run.state.apply import apply
from dpwatch.run.state.flush import flush
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import HUB_RANK, Beat, Bye, Collective, Position, Step, Tick
from tests.frames import MS, START_NS, batch, hello, window

SECOND = 1_000_000_000
WORLD = "default"


def at(group, seq, *, op="all_reduce", nbytes=400, ranks=4, members=(), ms=0, step=9, done=False):
    """A position in a group: its call `seq`, entered `ms` after the run's tenth step."""
    issued = START_NS + 1000 * MS + int(ms * MS)
    where = f"train.py:{seq}"
    return Position(
        group, ranks, seq, op, nbytes, "float32", issued, step, done, where, list(members)
    )


def standing(places, *, after_s=4.0, still=True, silent=(), steps=10, ended=None, inside=""):
    """Ten steps of 100 ms, then each rank at its `places` for the given time."""
    state = RunState("run")
    world = len(places)
    for r in places:
        records = [Step(0, i, START_NS + i * 100 * MS, START_NS + (i + 1) * 100 * MS)
                   for i in range(steps)]  # fmt: skip
        apply(state, batch(hello(world), *records, rank=r, now_ns=START_NS + 1000 * MS))
    now = START_NS + 1000 * MS + int(after_s * SECOND)
    for r, positions in places.items():
        still_ns = int(after_s * SECOND) if still is True or r in (still or ()) else 0
        beat = Beat(10, "backward", None, None, f"train.py:{r} main", still_ns, list(positions))
        if inside:
            beat = msgspec.structs.replace(beat, phase="", inside=inside, waits_in="poll")
        said = now - 3 * SECOND if r in silent else now
        apply(state, batch(beat, rank=r, now_ns=said))
    for r, bye in (ended or {}).items():
        apply(state, batch(bye, rank=r, now_ns=now))
    apply(state, batch(Tick(), rank=HUB_RANK, now_ns=now))
    flush(state)
    return state


def finding(state):
    return hang.rule(summarize(state), state)


def waiting(seq, ranks=(0, 1, 2, 3), missing=2):
    """All ranks in call `seq` of the world, except one that has only entered the call before."""
    return {r: [at(WORLD, seq - (r == missing), ms=5, done=r == missing)] for r in ranks}


def test_the_missing_rank_is_named_with_the_call_and_all_positions():
    found = finding(standing(waiting(20)))
    assert (found.kind, found.severity, found.ranks) == ("hang", "critical", [2])
    assert {k: found.evidence[k] for k in ("group", "seq", "op", "missing", "entered")} == {
        "group": WORLD, "seq": 20, "op": "all_reduce", "missing": [2], "entered": [0, 1, 3],
    }  # fmt: skip
    assert found.evidence["where"] == {str(r): f"train.py:{r} main" for r in range(4)}
    assert found.evidence["doing"] == {"2": "still"}
    assert found.evidence["stuck_s"] == pytest.approx(3.995)
    assert "Rank 2 has not entered all_reduce at train.py:20" in found.text
    assert "ranks 0-1, 3 have waited there" in found.text


def test_no_hang_before_three_seconds_and_four_steps():
    assert finding(standing(waiting(20), after_s=2.9)) is None
    slow = standing(waiting(20), after_s=4.0)
    for rank in slow.ranks.values():
        lane = rank.lanes[0]
        lane.recent = window(Step(0, i, 0, 1500 * MS) for i in range(10))
    assert finding(slow) is None


def test_the_limit_is_longer_before_the_first_steps():
    assert finding(standing(waiting(3), after_s=8, steps=0)) is None
    assert finding(standing(waiting(3), after_s=12, steps=0)).ranks == [2]


def test_a_stopped_rank_is_silent():
    found = finding(standing(waiting(20), silent=[2]))
    assert (found.ranks, found.severity) == ([2], "critical")
    assert found.evidence["doing"] == {"2": "silent"}
    assert "silent for 3 s" in found.text
    assert "pid 1002" in found.text


def test_a_rank_busy_with_python_is_a_warning():
    found = finding(standing(waiting(20), still=(0, 1, 3)))
    assert (found.ranks, found.severity) == ([2], "warning")
    assert "busy at train.py:2 main" in found.text


def test_waits_are_followed_through_groups():
    """0 waits for 1 in a, 1 for 2 in b, and 2 for nobody."""
    a, b = {"ranks": 2, "members": (0, 1)}, {"ranks": 2, "members": (1, 2)}
    found = finding(
        standing({
            0: [at("a", 5, **a)],
            1: [at("b", 7, **b), at("a", 4, done=True, **a)],
            2: [at("b", 6, done=True, **b)],
        })
    )  # fmt: skip
    assert found.ranks == [2]
    assert (found.evidence["group"], found.evidence["seq"]) == ("b", 7)


def test_a_cycle_is_a_deadlock():
    """0 is in a without 1, and 1 is in b without 0. 2 waits for 0 but is not in the cycle."""
    a, b = {"ranks": 2, "members": (0, 1)}, {"ranks": 2, "members": (0, 1)}
    found = finding(
        standing({
            0: [at("a", 5, **a), at("b", 2, done=True, **b)],
            1: [at("b", 3, **b), at("a", 4, done=True, **a)],
            2: [at("c", 1, ranks=2, members=(0, 2))],
        })
    )  # fmt: skip
    assert (found.ranks, found.evidence["pattern"]) == ([0, 1], "deadlock")
    assert "a deadlock" in found.text
    assert "rank 0 in all_reduce of a" in found.text


def test_a_rank_that_has_finished_is_waited_for():
    state = standing(waiting(20), ended={2: Bye("finished")})
    found = finding(state)
    assert (found.ranks, found.evidence["doing"]) == ([2], {"2": "finished"})
    assert "has finished" in found.text


def test_a_dead_rank_is_reported_as_lost():
    state = standing(waiting(20), ended={2: Bye("lost", "process 1002 was killed by SIGKILL", -9)})
    assert finding(state) is None
    found = rank_lost.rule(summarize(state), state)
    assert (found.ranks, found.evidence["exit"], found.severity) == ([2], -9, "critical")
    assert "SIGKILL" in found.text
    assert "dmesg" in found.text


def test_a_call_that_all_entered_and_none_left_is_a_hang():
    found = finding(standing({r: [at(WORLD, 20, ms=5)] for r in range(4)}))
    assert (found.ranks, found.evidence["pattern"]) == ([0, 1, 2, 3], "all_entered")
    assert found.severity == "warning"
    longer = finding(standing({r: [at(WORLD, 20, ms=5)] for r in range(4)}, after_s=20))
    assert longer.severity == "critical"


def test_a_lone_process_is_stuck_or_busy():
    found = finding(standing({0: []}))
    assert (found.ranks, found.evidence["pattern"], found.evidence["group"]) == ([0], "still", None)
    assert finding(standing({0: []}, still=False)) is None  # a long evaluation


@pytest.mark.parametrize(("inside", "said"), [("prompt", "a prompt"), ("pdb", "pdb's prompt")])
def test_a_rank_that_waits_for_a_person_does_not_hang(inside, said):
    """For example a notebook's kernel between two cells, with the run still open."""
    alone = standing({0: []}, after_s=3600, inside=inside)
    assert finding(alone) is None
    assert summarize(alone).state == "running"
    waited_for = finding(standing(waiting(20), after_s=3600, inside=inside))
    assert (waited_for.severity, waited_for.ranks) == ("warning", [2])
    assert f"is at {said}: it waits for someone to enter the next line or cell." in waited_for.text


def test_a_rank_that_never_reported_blocks_the_others():
    places = waiting(20)
    del places[2]
    state = standing(places)
    for rank in state.ranks.values():
        rank.hello = hello(4)
    found = finding(state)
    assert (found.ranks, found.evidence["doing"]) == ([2], {"2": "unseen"})


# -- desync ----------------------------------------------------------------------------------------


def called(seq, *, step, op="all_reduce", nbytes=400, ranks=4):
    return Collective(step, op, WORLD, ranks, seq, nbytes, START_NS + seq, dtype="float32")


def in_step(steps=3, ranks=range(4)):
    """Ranks that call a small and a large all_reduce in each step."""
    state = RunState("run")
    for r in ranks:
        apply(state, batch(hello(4), rank=r))
        for i in range(steps):
            records = [called(2 * i, step=i, nbytes=12), called(2 * i + 1, step=i, nbytes=9000)]
            apply(state, batch(*records, rank=r))
    return state


def strayed(state):
    return desync.rule(summarize(state), state)


@pytest.mark.parametrize(
    "odd", [{"op": "broadcast", "nbytes": 12}, {"nbytes": 20}], ids=["op", "size"]
)
def test_a_rank_with_a_different_call_is_named(odd):
    state = in_step()
    assert strayed(state) is None
    for r in range(4):
        call = called(6, step=3, **(odd if r == 1 else {"nbytes": 12}))
        apply(state, batch(call, rank=r))
    found = strayed(state)
    assert (found.kind, found.ranks, found.began) == ("desync", [1], 3)
    assert (found.evidence["group"], found.evidence["seq"]) == (WORLD, 6)
    assert found.evidence["op"] == "all_reduce"
    assert "Rank 1 called" in found.text


def test_desync_is_seen_in_heartbeats_of_calls_that_never_complete():
    state = in_step()
    for r in range(4):
        odd = {"op": "broadcast"} if r == 3 else {}
        apply(state, batch(Beat(3, "", positions=[at(WORLD, 6, nbytes=12, **odd)]), rank=r))
    assert strayed(state).ranks == [3]


def test_of_two_ranks_the_step_before_shows_which_is_wrong():
    """Rank 0 skips the small one, so its large one takes that position."""
    state = in_step()
    apply(state, batch(called(6, step=3, nbytes=9000), rank=0))
    apply(state, batch(called(6, step=3, nbytes=12), rank=1))
    found = strayed(state)
    assert found.ranks == found.evidence["missing"] == [0]


@pytest.mark.parametrize("steps", [3, 10])
def test_desync_is_found_without_a_dead_ranks_records(steps):
    """Rank 0 died before its records arrived; rank 1 skipped a call."""
    state = in_step(steps, ranks=(1, 2, 3))
    for r in (1, 2, 3):
        apply(state, batch(called(2 * steps, step=steps, nbytes=9000 if r == 1 else 12), rank=r))
    found = strayed(state)
    if steps == 3:  # too few calls to be sure that their numbers go together
        assert found is None
    else:
        assert found.ranks == found.evidence["missing"] == [1]


def test_both_ranks_are_named_if_neither_is_known_to_be_wrong():
    state = in_step()
    apply(state, batch(called(6, step=3, nbytes=1), rank=0))
    apply(state, batch(called(6, step=3, nbytes=2), rank=1))
    assert strayed(state).ranks == [0, 1]


def test_a_skipped_call_among_equal_ones_is_seen_by_the_steps():
    places = {r: [at(WORLD, 20, ms=5, step=10 if r == 1 else 9)] for r in range(4)}
    state = standing(places)
    for seq in range(8):
        for r in range(4):
            apply(state, batch(called(seq, step=seq), rank=r))
    found = strayed(state)
    assert found.ranks == [1]
    assert finding(state) is None  # the hang is explained
    assert strayed(standing(places, after_s=1)) is None


def test_uneven_gathers_and_groups_that_never_matched_are_no_desync():
    state = in_step()
    for r in range(4):
        apply(state, batch(called(6, step=3, op="all_gather", nbytes=100 + r), rank=r))
    assert strayed(state) is None
    apart = RunState("run")
    for r in range(4):
        apply(apart, batch(called(0, step=0, nbytes=10 + r), rank=r))
    assert strayed(apart) is None


def test_desync_ends_once_ranks_agree_again():
    state = in_step()
    for seq in range(6, 90):
        for r in range(4):
            apply(state, batch(called(seq, step=seq, nbytes=1 if r + seq == 6 else 12), rank=r))
    assert strayed(state) is None


# -- rank_lost -------------------------------------------------------------------------------------


def died(*ends):
    """A run whose ranks ended like that, in this order."""
    state = RunState("run")
    for r in range(4):
        apply(state, batch(hello(4), rank=r))
    for i, (rank, bye) in enumerate(ends):
        apply(state, batch(bye, rank=rank, now_ns=START_NS + i))
    return state, rank_lost.rule(summarize(state), state)


TERM = Bye("lost", "process 1 was killed by SIGTERM", -signal.SIGTERM)
RESET = Bye("failed", "RuntimeError: Connection closed by peer [127.0.0.1]:1234")


@pytest.mark.parametrize(
    ("ends", "first"),
    [
        ([(3, Bye("failed", "ValueError: bad")), (0, TERM), (1, TERM)], 3),
        ([(0, RESET), (2, Bye("lost", "process 1 was killed by SIGKILL", -9)), (1, TERM)], 2),
        ([(1, TERM), (2, Bye("lost", "process 1 ended with exit code 3", 3))], 2),
    ],
)
def test_the_rank_that_ended_first_is_named(ends, first):
    state, found = died(*ends)
    assert found.ranks == [first]
    assert found.evidence["also"] == [r.rank for r in state.gone[1:]]
    assert summarize(state).reason.startswith(f"rank {first}:")


def test_ranks_that_all_gave_up_waiting_are_named_together():
    state, found = died((1, RESET), (0, RESET))
    assert found is None  # what explains it may be on its way
    assert summarize(state).reason.startswith("ranks 0-1 gave up waiting: RuntimeError")
    apply(state, batch(Tick(), rank=HUB_RANK, now_ns=START_NS + 4 * SECOND))
    found = rank_lost.rule(summarize(state), state)
    assert (found.ranks, found.evidence["pattern"]) == ([0, 1], "gave_up")
    assert "Ranks 0-1 gave up waiting" in found.text
    assert "Ranks 2-3 are still running" in found.text


def test_finished_ranks_and_oom_are_not_rank_lost():
    assert died((0, Bye("finished")))[1] is None
    assert died((0, Bye("failed", "OutOfMemoryError: cpu out of memory")))[1] is None
