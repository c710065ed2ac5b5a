"""Conversion to one clock shifts all points in time and no durations; merging of states."""

import msgspec
import pytest

from dpwatch.hub.cluster.clock_rebase import MOMENTS, shift_state, shifted_batch
from dpwatch.hub.cluster.merge import merge
from dpwatch.run.derive.summarize import summarize, view
from dpwatch.run.derive.timeline import clock_shifts
from dpwatch.run.diagnose import straggler
from dpwatch.run.state.encoding import decode, encode
from dpwatch.wire import messages
from dpwatch.wire.messages import HUB_RANK, Beat, Bye, Host, Position, Tick
from tests.frames import MS, START_NS, batch, collective, ddp_run, hello, played, step

AHEAD_NS = 7_000_000_000_000

LENGTHS = {
    "data_ns", "h2d_ns", "forward_ns", "backward_ns", "optimizer_ns", "on_cpu_ns", "runqueue_ns",
    "gil_wait_ns", "idle_ns", "exposed_ns", "blocked_ns", "into_ns", "duration_ns", "still_ns",
    "heard_ns", "offset_ns", "error_ns", "comm_ns",
}  # fmt: skip


def structs():
    found = [getattr(messages, name) for name in vars(messages)]
    return [s for s in found if isinstance(s, type) and issubclass(s, msgspec.Struct)]


@pytest.mark.parametrize("struct", structs(), ids=lambda s: s.__name__)
def test_every_time_field_is_classified_as_point_or_duration(struct):
    times = {name for name in struct.__struct_fields__ if name.endswith("_ns")}
    times -= {"wall_ns"}  # the wall clock is each host's own
    if struct is messages.Batch:
        times -= {"mono_ns"}  # `shifted_batch` has it in hand
    assert times - set(MOMENTS.get(struct, ())) <= LENGTHS


def on_other_clock(frames, first_rank):
    """Frames whose ranks from `first_rank` on are on another host, whose clock is ahead."""
    for frame in frames:
        if frame.rank >= first_rank:
            moved = shifted_batch(frame, AHEAD_NS, frame.wall_ns)
            yield msgspec.structs.replace(moved, host="there")
        else:
            yield frame


def back(frame):
    return shifted_batch(frame, -AHEAD_NS, frame.wall_ns) if frame.host == "there" else frame


def known_host(error_ns=1000, silent=False):
    record = Host("there", START_NS, silent, -AHEAD_NS, error_ns, "exchange")
    return batch(Tick(), record, rank=HUB_RANK, seq=-1, host="here")


def test_shifting_back_restores_the_frame():
    for frame in ddp_run(steps=3, ranks=4):
        moved = shifted_batch(frame, AHEAD_NS, frame.wall_ns)
        assert shifted_batch(moved, -AHEAD_NS, frame.wall_ns) == frame
    beat = batch(Beat(3, "", positions=[Position("default", 2, 3, "x", 1, "f", 77, 3, True)]))
    assert shifted_batch(beat, 5, 0).records[0].positions[0].issued_ns == 82


def test_a_merged_state_equals_one_made_from_its_frames():
    frames = list(on_other_clock(ddp_run(steps=10, ranks=4), 2))
    known = [known_host()]
    whole = played([*known, *(back(frame) for frame in frames)])
    head = played([*known, *(frame for frame in frames if frame.rank < 2)])
    node = played([frame for frame in frames if frame.rank >= 2])
    for _ in range(2):  # twice is once
        part = decode(encode(node))
        shift_state(part, -AHEAD_NS)
        merge(head, part, "there")
    told, truth = summarize(head), summarize(whole)
    assert told.ranks == truth.ranks
    assert (told.loss.first, told.loss.last) == pytest.approx((truth.loss.first, truth.loss.last))
    assert told.hosts == truth.hosts == ["here", "there"]
    # Latencies of both hosts' calls are a sample, so they may differ.
    (merged,), (direct,) = (
        [c for c in run.collectives if c.bytes_per_step == 1500] for run in (told, truth)
    )
    assert merged.count_per_step == direct.count_per_step
    assert merged.last_arrival == direct.last_arrival
    assert view(head).elapsed_s == view(whole).elapsed_s


@pytest.mark.parametrize(
    ("known", "told", "left"),
    [("lost", None, None), ("finished", None, "finished"), ("finished", "lost", "finished"),
     (None, "failed", "failed"), ("lost", "finished", "finished")],
)  # fmt: skip
def test_a_merge_keeps_a_ranks_goodbye_or_its_hubs_report(known, told, left):
    def state_with(bye):
        ends = [] if bye is None else [batch(Bye(bye), host="there", seq=-(bye == "lost"))]
        return played([batch(hello(1), step(0), host="there"), *ends])

    head = state_with(known)
    merge(head, state_with(told), "there")
    bye = head.ranks[0].bye
    assert (bye and bye.state) == left


def test_a_merge_replaces_a_rank_with_another_process():
    head = played([known_host(), *(back(f) for f in on_other_clock(ddp_run(10, 4), 2))])
    fresh = [
        batch(hello(4), collective(0, 0, nbytes=8, ranks=4, at_ms=1), rank=2, pid=9, host="there")
    ]
    merge(head, played(fresh), "there")
    assert head.ranks[2].pid == 9
    assert head.ranks[2].lanes[0].steps == 0
    assert head.ranks[2].lanes[0].calls["all_reduce/default"].seen == 1
    assert head.ranks[3].lanes[0].steps == 10


def test_waits_are_counted_only_between_comparable_clocks():
    frames = [back(frame) for frame in on_other_clock(ddp_run(steps=10, ranks=4), 2)]
    unknown = played(frames)
    assert summarize(unknown).collectives[0].last_arrival is None
    known = played([known_host(), *frames])
    assert summarize(known).collectives[0].last_arrival.rank == 2


@pytest.mark.parametrize(("error_ms", "seen"), [(1, True), (20, False)])
def test_a_straggler_on_another_host_must_stand_out_from_the_clocks_error(error_ms, seen):
    frames = [known_host(error_ms * MS)]
    frames += [batch(hello(4), rank=r, host="there" if r > 1 else "here") for r in range(4)]
    for index in range(30):
        for r in range(4):
            late = 40 if r == 3 else 0
            frames.append(
                batch(
                    collective(index, index, nbytes=8, ranks=4, at_ms=index * 100 + 40 + late),
                    step(index),
                    rank=r,
                    seq=index + 1,
                    host="there" if r > 1 else "here",
                    now_ns=START_NS + (index + 1) * 100 * MS,
                )
            )
    state = played(frames)
    found = straggler.rule(summarize(state), state)
    assert (found is not None) == seen
    assert found is None or found.ranks == [3]


def test_a_silent_hosts_ranks_are_stale_and_not_lost():
    frames = [back(frame) for frame in on_other_clock(ddp_run(steps=10, ranks=4), 2)]
    state = played([known_host(), *frames[:-4], known_host(silent=True)])  # but for the byes
    run = summarize(state)
    assert [row.state for row in run.ranks] == ["running", "running", "stale", "stale"]
    assert run.state == "running"
    assert run.reason == "no report from there; its ranks are shown as last seen"
    assert run.other_hosts[0].silent_s is not None


def test_a_timeline_of_aligned_hosts_is_not_shifted_again():
    lanes = view(played([known_host(), *map(back, on_other_clock(ddp_run(5, 4), 2))])).lanes
    assert clock_shifts(lanes, aligned=True) == {"here": 0, "there": 0}
