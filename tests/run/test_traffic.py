"""Traffic and communication per step are means over the same steps, however often calls occur."""

import msgspec
import pytest

from dpwatch.run.derive.communication import whole_bytes
from dpwatch.run.derive.summarize import summarize, view
from dpwatch.run.derive.timeline import exposed_share
from dpwatch.run.state.apply import apply
from dpwatch.run.state.encoding import decode, encode
from dpwatch.run.state.flush import flush
from dpwatch.run.state.parts import Covered
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.batching import pack
from dpwatch.wire.messages import Beat, Bye, Collective, Duration, Step
from tests.frames import MS, START_NS, batch, hello, step


@pytest.fixture
def run():
    return RunState("run")


def call(index, seq, *, at_ms=10.0, took_ms=2.0, nbytes=1000, blocked_ms=None, **more):
    issued = START_NS + int((index * 100 + at_ms) * MS)
    done = None if took_ms is None else issued + int(took_ms * MS)
    blocked = None if blocked_ms is None else int(blocked_ms * MS)
    told = {"op": "all_reduce", "group": "default", "ranks": 2, "dtype": "f", **more}
    return Collective(
        step=index, seq=seq, nbytes=nbytes, issued_ns=issued, completed_ns=done,
        blocked_ns=blocked, **told,
    )  # fmt: skip


def say(run, rank, *records, now_ms=0.0, **more):
    apply(run, batch(*pack(records), rank=rank, now_ns=START_NS + int(now_ms * MS), **more))


def greet(run, ranks=2, **more):
    for rank in range(ranks):
        say(run, rank, hello(ranks, **more))


@pytest.mark.parametrize("every", [1, 2, 4, 8, 16])
def test_calls_every_few_steps_count_in_proportion(run, every):
    greet(run)
    for index in range(100):
        for rank in range(2):
            calls = [call(index, index)] if index % every == 0 else []
            say(run, rank, *calls, step(index, comm_ns=2 * MS * len(calls)))
    told = summarize(run)
    (op,) = told.collectives
    assert op.count_per_step == 1 / every
    assert op.bytes_per_step == round(1000 / every)
    for row in told.ranks:
        # Of two ranks a ring sends the payload once.
        assert row.sent_bytes_per_step == row.received_bytes_per_step == round(1000 / every)
        assert row.comm_ms.total == pytest.approx(2 / every, rel=0.15)  # over other steps
        assert row.comm_ms.total <= row.step_ms.mean
    assert told.balance.traffic_device0_over_median == 1.0


def test_calls_every_tenth_step_are_right_within_one_occurrence(run):
    greet(run)
    for index in range(100):
        for rank in range(2):
            say(run, rank, *([call(index, index)] if index % 10 == 0 else []), step(index))
    (op,) = summarize(run).collectives
    assert op.count_per_step in (6 / 64, 7 / 64)
    assert op.bytes_per_step == round(1000 * op.count_per_step)


def test_per_step_figures_are_unknown_before_the_first_step_ends(run):
    greet(run)
    for rank in range(2):
        say(run, rank, call(0, 0))
    told = summarize(run)
    (op,) = told.collectives
    assert (op.count_per_step, op.bytes_per_step, op.latency_ms.p50) == (None, None, 2.0)
    assert {row.sent_bytes_per_step for row in told.ranks} == {None}
    for rank in range(2):
        say(run, rank, step(0))
    assert summarize(run).collectives[0].count_per_step == 1
    for rank in range(2):
        say(run, rank, step(1))  # now that there is another, the first does not count
    assert summarize(run).collectives == []


def test_calls_between_steps_count_in_the_next_and_after_the_last_in_none(run):
    """Calls of an evaluation count in the step that it delays, those after the last in none."""
    greet(run)
    for index in range(11):
        for rank in range(2):
            evaluation = [call(index, seq, op="broadcast") for seq in range(5)]
            calls = [call(index, 100 + index), *(evaluation if index == 5 else ())]
            say(run, rank, *calls, *([step(index)] if index < 10 else []))
    found = {op.op: op.count_per_step for op in summarize(run).collectives}
    assert found == {"all_reduce": 1.0, "broadcast": pytest.approx(5 / 8)}


def test_steps_whose_calls_may_still_come_do_not_count(run):
    """A heartbeat that counts a step precedes that step's calls in its frame."""
    greet(run, 1)
    say(run, 0, *(call(i, i, ranks=1, op="send") for i in range(10)), step(0), step(9))
    say(run, 0, Beat(20, ""), *(call(i, i, ranks=1, op="send") for i in range(10, 15)))
    assert summarize(run).ranks[0].steps == 20
    assert summarize(run).ranks[0].sent_bytes_per_step == 1000
    say(run, 0, *(call(i, i, ranks=1, op="send") for i in range(15, 20)))
    say(run, 0, Beat(25, ""))
    assert run.ranks[0].whole_steps == 20
    assert summarize(run).ranks[0].sent_bytes_per_step == 1000
    say(run, 0, *(call(i, i, ranks=1, op="send") for i in range(20, 25)), Beat(25, ""))
    say(run, 0, Bye("finished"))
    assert run.ranks[0].whole_steps == 25
    assert summarize(run).ranks[0].sent_bytes_per_step == 1000


def test_messages_are_sent_by_one_and_received_by_the_other(run):
    greet(run)
    for index in range(10):
        say(run, 0, call(index, index, op="send", ranks=1, peer=1), step(index))
        say(run, 1, call(index, index, op="recv", ranks=1, peer=0), step(index))
    told = summarize(run)
    assert [(row.sent_bytes_per_step, row.received_bytes_per_step) for row in told.ranks] == [
        (1000, 0), (0, 1000),
    ]  # fmt: skip
    assert [(m.src, m.dst, m.count_per_step, m.bytes_per_step) for m in told.messages] == [
        (0, 1, 1.0, 1000)
    ]
    assert {(op.op, op.ranks, op.bytes_per_step) for op in told.collectives} == {
        ("send", 2, 1000), ("recv", 2, 1000),
    }  # fmt: skip
    assert not run.arrivals.open.rows  # they belong to no other rank's call
    assert summarize(decode(encode(run))) == told


def test_a_receivers_record_is_used_if_the_sender_has_none(run):
    say(run, 1, hello(2))
    say(run, 1, *(call(i, i, op="recv", ranks=1, peer=0) for i in range(5)), step(0), step(4))
    (told,) = summarize(run).messages
    assert (told.src, told.dst, told.bytes_per_step) == (0, 1, 1000)


def test_bytes_of_a_rank_with_unseen_exchanges_are_unknown(run):
    greet(run, unseen="torch.distributed.rpc")
    for index in range(5):
        for rank in range(2):
            say(run, rank, call(index, index), step(index))
    told = summarize(run)
    assert {row.sent_bytes_per_step for row in told.ranks} == {None}
    assert {row.unseen for row in told.ranks} == {"torch.distributed.rpc"}
    assert told.collectives[0].bytes_per_step == 1000


def test_bytes_of_a_rank_without_any_calls_are_unknown(run):
    greet(run)
    for rank in range(2):
        say(run, rank, *(step(index) for index in range(5)))
    assert {row.sent_bytes_per_step for row in summarize(run).ranks} == {None}
    alone = RunState("alone")
    say(alone, 0, hello(1), *(step(index) for index in range(5)))
    assert summarize(alone).ranks[0].sent_bytes_per_step == 0


def test_a_rounded_mean_of_bytes_is_zero_only_if_the_mean_is():
    assert [whole_bytes(mean) for mean in (0.0, 0.02, 0.4, 1.5, 1e9)] == [0, 1, 1, 2, 10**9]


# -- times ------------------------------------------------------------------------------------


def test_waits_in_several_calls_at_once_count_once(run):
    """Forty calls are issued together; rank 1 enters all of them 50 ms late."""
    greet(run)
    for index in range(10):
        for rank in range(2):
            late = 50 * rank
            calls = [
                call(index, 40 * index + i, at_ms=10 + i / 100 + late, took_ms=60 - late)
                for i in range(40)
            ]
            say(run, rank, *calls, step(index, comm_ns=60 * MS))
    first, second = summarize(run).ranks
    assert first.comm_ms.wait == pytest.approx(50.39, abs=0.01)
    assert second.comm_ms.wait == 0.0
    assert first.comm_ms.total == 60.0
    assert summarize(run).collectives[0].last_arrival.rank == 1


@pytest.mark.parametrize(
    ("intervals", "each"),
    [
        ([(10, 20), (15, 30), (40, 50)], [10, 10, 10]),
        ([(10, 20), (30, 40), (20, 30)], [10, 10, 10]),  # it comes late, into a gap
        ([(10, 20), (30, 40), (15, 35)], [10, 10, 10]),
        ([(15, 20), (10, 30)], [5, 15]),
        ([(10, 30), (15, 20)], [20, 0]),
        ([(10, 20), (30, 40), (50, 60), (0, 25)], [10, 10, 10, 0]),  # too late to be told apart
    ],
)
def test_covered_time_counts_once(intervals, each):
    covered = Covered()
    assert [covered.add(*interval) for interval in intervals] == each


def test_overview_and_timeline_agree_on_the_same_steps(run):
    greet(run)
    exposed = [900, *([5, 90] * 6)]  # the first step holds start-up; the others differ
    for index, ms in enumerate(exposed[:12]):
        for rank in range(2):
            took = 1000 if index == 0 else 100
            told = step(index, took_ms=100, exposed_ns=min(ms, took) * MS)
            say(run, rank, call(index, index), msgspec.structs.replace(
                told, start_ns=told.end_ns - took * MS
            ))  # fmt: skip
    seen = view(run)
    for lane, row in zip(seen.lanes, seen.run.ranks, strict=True):
        assert row.comm_ms.exposed_share == exposed_share(lane.steps)
        assert row.comm_ms.exposed == pytest.approx((5 * 6 + 90 * 5) / 11)  # but the first's


def test_exposed_time_covers_every_step_if_python_waits_for_all_calls(run):
    """Including steps that are only counted: here one of ten has a record."""
    greet(run)
    for index in range(100):
        for rank in range(2):
            calls = [call(index, index, blocked_ms=8)] if index % 4 == 0 else []
            told = [step(index, exposed_ns=0)] if index % 10 == 9 else []
            say(run, rank, *calls, *told)
    for row in summarize(run).ranks:
        assert row.comm_ms.exposed == 2.0
        assert row.comm_ms.exposed_share == 0.02
    assert summarize(run).collectives[0].exposed_ms_per_step == 2.0


def test_exposed_time_covers_sampled_steps_if_cpp_waits_for_some_calls(run):
    greet(run)
    for index in range(20):
        for rank in range(2):
            calls = call(index, 2 * index, blocked_ms=1), call(index, 2 * index + 1)
            say(run, rank, *calls, step(index, exposed_ns=7 * MS))
    assert {row.comm_ms.exposed for row in summarize(run).ranks} == {7.0}


def test_sums_of_overlapping_durations_are_capped_at_the_step(run):
    """NCCL's durations have no start times, so calls may overlap."""
    greet(run)
    for index in range(10):
        for rank in range(2):
            calls = [call(index, 2 * index + i, took_ms=None) for i in range(2)]
            say(run, rank, *calls, step(index))
    for rank in range(2):
        late = [
            Duration(index, "all_reduce", "default", 2, 2 * index + i, 1000, 80 * MS)
            for index in range(1, 10)
            for i in range(2)
        ]
        say(run, rank, *late)
    assert {row.comm_ms.total for row in summarize(run).ranks} == {100.0}


def test_times_are_capped_at_the_mean_step_if_longer_ones_were_sampled(run):
    greet(run)
    for index in range(20):
        for rank in range(2):
            long = index % 2
            looked_at = {"exposed_ns": 90 * MS, "comm_ns": 95 * MS} if long else {}
            start = START_NS + index * 100 * MS
            took = (100 if long else 40) * MS
            each = Step(device=0, step=index, start_ns=start, end_ns=start + took, **looked_at)
            say(run, rank, call(index, index), each)
    for row in summarize(run).ranks:
        assert row.step_ms.mean == pytest.approx((10 * 100 + 9 * 40) / 19)  # without the first
        assert row.comm_ms.total == row.comm_ms.exposed == row.step_ms.mean
        assert row.comm_ms.exposed_share == 0.9  # of the steps in which it is known


def test_durations_of_rare_calls_are_a_mean_over_all_steps(run):
    greet(run)
    for index in range(101):
        for rank in range(2):
            calls = [call(index, index, took_ms=None)] if index % 4 == 0 else []
            say(run, rank, *calls, step(index))
    for rank in range(2):
        late = [
            Duration(index, "all_reduce", "default", 2, index, 1000, 20 * MS)
            for index in range(4, 101, 4)
        ]
        say(run, rank, *late)
    assert {row.comm_ms.total for row in summarize(run).ranks} == {5.0}


def test_a_late_completion_counts_for_its_call(run):
    greet(run)
    for index in range(10):
        for rank in range(2):
            say(run, rank, call(index, index, took_ms=None), step(index))
    for rank in range(2):
        issued = [START_NS + (index * 100 + 10) * MS for index in range(10)]
        ends = [
            Duration(i, "all_reduce", "default", 2, i, 1000, 6 * MS, 0, at + 6 * MS, 4 * MS)
            for i, at in enumerate(issued)
        ]
        say(run, rank, *ends)
    flush(run)
    (op,) = summarize(run).collectives
    assert op.latency_ms.p50 == 6.0
    assert op.exposed_ms_per_step == 4.0
    assert op.algbw_gbps == pytest.approx(1000 / 6e-3 / 1e9)
