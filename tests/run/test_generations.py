"""Groups that are destroyed and recreated: calls match within a generation only."""

import msgspec
import pytest

from dpwatch.run.derive.summarize import summarize
from dpwatch.run.diagnose import desync
from dpwatch.run.state.apply import apply
from dpwatch.run.state.encoding import decode, encode
from dpwatch.run.state.flush import flush
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.batching import pack
from dpwatch.wire.messages import Beat, Collective, Position
from tests.frames import MS, START_NS, batch, hello

OTHER_PID = 77


@pytest.fixture
def run():
    """A run of two ranks."""
    return RunState("run")


def call(seq, generation=0, *, op="all_reduce", ms=0, group="default", nbytes=8):
    issued = START_NS + ms * MS
    return Collective(
        seq, op, group, 2, seq, nbytes, issued, issued + MS, dtype="f32", generation=generation
    )


def say(run, rank, *records, pid=None):
    apply(run, batch(*pack(records), rank=rank, pid=pid))


def whole(run):
    """Number of calls known to be entered by both ranks."""
    flush(run)
    return sum(sum(op.last_calls.values()) for op in run.ops.values())


def life(generation, calls=5, **more):
    """Calls of one group; the first is start-up, which statistics leave out."""
    return [call(seq, generation, **more) for seq in range(calls + 1)]


def test_calls_match_within_each_recreated_group(run):
    for rank in range(2):
        say(run, rank, hello(2))
    for generation in range(3):
        for rank in range(2):
            say(run, rank, *life(generation))
    assert whole(run) == 15
    assert not run.arrivals.open.rows


def test_several_generations_in_one_frame_match_separately(run):
    frame = [each for generation in range(20) for each in life(generation, ms=generation)]
    for rank in range(2):
        say(run, rank, hello(2), *frame)
    assert whole(run) == 20 * 5


@pytest.mark.parametrize("first", [0, 1])
def test_a_replacing_process_is_in_the_next_generation(run, first):
    for rank in range(2):
        say(run, rank, hello(2), *life(0, calls=9))
    says = {
        0: lambda: say(run, 0, *life(1, op="broadcast")),
        1: lambda: say(run, 1, hello(2), *life(0, op="broadcast"), pid=OTHER_PID),
    }
    says[first]()
    says[1 - first]()
    assert whole(run) == 9 + 5
    assert not run.arrivals.open.rows
    assert run.arrivals.mismatch is None
    # Both count on from there.
    say(run, 0, *life(2))
    say(run, 1, *life(1), pid=OTHER_PID)
    assert whole(run) == 9 + 5 + 5


def test_steps_compare_within_a_recreated_group(run):
    """Rank 0 continues its count, and the process that replaces rank 1 starts at 0."""
    for rank in range(2):
        say(run, rank, hello(2), *life(0, calls=9))
    at_400 = [msgspec.structs.replace(each, step=each.step + 400) for each in life(1, calls=9)]
    stuck = call(10, 1), msgspec.structs.replace(call(10, 1), step=410)
    say(run, 0, *at_400, stuck[1])
    say(run, 1, hello(2), *life(0, calls=9), pid=OTHER_PID)
    flush(run)
    now_ns = START_NS + 60_000 * MS
    for rank, step in ((0, 410), (1, 10)):
        place = Position("default", 2, 10, "all_reduce", 8, "f32", START_NS, step, False, "a:1",
                         [], 1 - rank)  # fmt: skip
        beat = batch(Beat(step, "", positions=[place]), rank=rank, now_ns=now_ns,
                     pid=OTHER_PID if rank else None)  # fmt: skip
        apply(run, beat)
    assert desync.rule(summarize(run), run) is None


def test_open_calls_of_a_destroyed_group_are_ignored(run):
    for rank in range(2):
        say(run, rank, hello(2), *life(0))
    say(run, 0, call(6, nbytes=99))  # nobody else comes, and the group is given up
    for rank in range(2):
        say(run, rank, *life(1, calls=7))
    assert whole(run) == 5 + 7
    assert not list(run.arrivals.waiting())
    assert not list(run.arrivals.open_signatures())
    assert desync.rule(summarize(run), run) is None


def test_a_rank_that_joins_later_is_in_the_newest_generation(run):
    for rank in range(2):
        say(run, rank, hello(2), *life(0))
    say(run, 0, *life(1))
    say(run, 1, *life(1))
    say(run, 2, hello(3), *life(0))
    flush(run)
    assert run.ranks[2].shifts == {"default": 1}


def test_positions_in_a_destroyed_group_are_ignored(run):
    def beat(seq, generation, nbytes):
        place = Position("default", 2, seq, "all_reduce", nbytes, "f32", START_NS, 3, False, "a:1",
                         [], generation)  # fmt: skip
        return Beat(3, "", positions=[place])

    for rank in range(2):
        say(run, rank, hello(2), *life(0, calls=9))
    say(run, 0, beat(9, 0, 8))
    say(run, 1, *life(1, calls=3), beat(9, 1, 99))
    assert desync.rule(summarize(run), run) is None
    say(run, 0, *life(1, calls=3), beat(9, 1, 8))
    assert desync.rule(summarize(run), run).evidence["seq"] == 9


def test_generations_are_encoded_with_the_state(run):
    for rank in range(2):
        say(run, rank, hello(2), *life(0))
    say(run, 1, hello(2), pid=OTHER_PID)
    late = decode(encode(run))
    for state in (run, late):
        say(state, 1, *life(0), pid=OTHER_PID)
        say(state, 0, *life(1))
        assert whole(state) == 10


def test_generations_are_bounded(run):
    say(run, 0, hello(1))
    say(run, 0, hello(1), pid=OTHER_PID)
    for place in range(600):
        say(run, 0, call(0, 3, group=f"g{place}"), pid=OTHER_PID)
    flush(run)
    rank = run.ranks[0]
    assert max(map(len, (rank.shifts, rank.generations))) <= 513
