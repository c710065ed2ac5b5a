"""Late durations count once, for their call's step, and are shown until newer ones arrive."""

import pytest

from dpwatch.run.derive.summarize import summarize
from dpwatch.run.state.apply import apply
from dpwatch.run.state.encoding import decode, encode
from dpwatch.run.state.late_durations import LATE_STEPS, LATENCIES
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import WINDOW
from dpwatch.wire.messages import Duration
from tests.frames import MS, batch, collective, hello, played, step

STEPS = 20


def duration(index, took_ms, *, seq=None, op="all_reduce", nbytes=1_000_000, device=0):
    seq = index if seq is None else seq
    return Duration(index, op, "default", 2, seq, nbytes, int(took_ms * MS), device)


def frames(first=0, steps=STEPS):
    """One untimed all-reduce of 1 MB per step."""
    for i in range(first, first + steps):
        call = collective(i, i, nbytes=1_000_000, ranks=2, at_ms=i * 100)
        yield batch(call, step(i), seq=i + 1)


@pytest.fixture
def state():
    return played([batch(hello(2)), *frames()])


def only(state):
    (stats,) = summarize(state).collectives
    return stats


def test_durations_are_unknown_until_they_arrive(state):
    assert only(state).latency_ms.p50 is only(state).algbw_gbps is None
    assert summarize(state).ranks[0].comm_ms.total is None
    apply(state, batch(duration(9, 2), duration(10, 4)))
    stats = only(state)
    assert stats.latency_ms.p50 == 3.0
    assert stats.algbw_gbps == pytest.approx(2e6 / 6e-3 / 1e9)
    assert stats.busbw_gbps == pytest.approx(stats.algbw_gbps)
    assert stats.count_per_step == 1
    assert stats.bytes_per_step == 1_000_000
    assert stats.exposed_ms_per_step is None
    assert summarize(state).ranks[0].comm_ms.total == 3.0


def test_a_call_is_never_timed_twice(state):
    apply(state, batch(duration(9, 2), duration(9, 2), duration(9, 50)))
    assert only(state).latency_ms.p95 == 2.0
    timed = collective(STEPS, STEPS, nbytes=1_000_000, ranks=2, at_ms=2000, took_ms=7)
    apply(state, batch(timed, step(STEPS)))
    apply(state, batch(duration(STEPS, 50)))
    assert summarize(state).collectives[0].latency_ms.p95 < 8


@pytest.mark.parametrize(
    "strange",
    [
        duration(9, 2, op="broadcast"),
        duration(STEPS + 5, 2),
    ],
)
def test_a_duration_without_a_call_is_ignored(state, strange):
    apply(state, batch(strange))
    apply(state, batch(duration(9, 2), rank=1))
    assert only(state).latency_ms.p50 is None
    assert only(state).algbw_gbps is None


def test_the_last_timed_steps_stay_until_others_are_timed(state):
    apply(state, batch(duration(9, 2)))
    for frame in frames(STEPS, 2 * WINDOW):
        apply(state, frame)
    stats = only(state)
    assert stats.latency_ms.p50 == 2.0
    assert stats.algbw_gbps == pytest.approx(1e6 / 2e-3 / 1e9)
    assert summarize(state).ranks[0].comm_ms.total == 2.0
    apply(state, batch(duration(2 * WINDOW, 4), duration(3, 8)))  # the latter's step is long gone
    stats = only(state)
    assert stats.algbw_gbps == pytest.approx(1e6 / 4e-3 / 1e9)
    assert stats.latency_ms.p95 > 4


def test_a_step_with_calls_that_were_not_timed_has_no_total():
    second = collective(9, 99, nbytes=8, ranks=2, at_ms=901, op="broadcast")
    state = played([batch(hello(2)), *frames(), batch(second)])
    apply(state, batch(duration(9, 2)))
    assert summarize(state).ranks[0].comm_ms.total is None
    apply(state, batch(duration(9, 1, seq=99, op="broadcast", nbytes=8)))
    assert summarize(state).ranks[0].comm_ms.total == 3.0


def test_late_tallies_are_bounded_and_encoded():
    state = RunState("run")
    for frame in [batch(hello(2)), *frames(0, 2000)]:
        apply(state, frame)
        apply(
            state,
            batch(
                *[
                    duration(r.step, 2)
                    for r in frame.records
                    if r.__class__.__name__ == "Collective"
                ]
            ),
        )
    op = state.ops["all_reduce/default"]
    assert len(state.ranks[0].lanes[0].late.tallies) == LATE_STEPS
    assert len(op.latency_ms) <= 2 * LATENCIES
    again = decode(encode(state))
    assert summarize(again) == summarize(state)
