"""The state compared with sums computed by hand."""

import statistics

import msgspec
import pytest

from dpwatch.quantiles import quantile
from dpwatch.run.derive.summarize import summarize, view
from dpwatch.run.diagnose.advance import advance
from dpwatch.run.model.snapshot import LANE_STEPS, LANES, Loss
from dpwatch.run.state import bounds
from dpwatch.run.state.apply import apply
from dpwatch.run.state.curves import CURVE_POINTS, Thinned
from dpwatch.run.state.encoding import decode, encode
from dpwatch.run.state.flush import flush
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import WINDOW
from dpwatch.wire.messages import HUB_RANK, Beat, Bye, Collective, Tick, Transfer
from tests.frames import (
    MS,
    START_NS,
    batch,
    collective,
    ddp_run,
    dp_run,
    hello,
    memory,
    played,
    step,
)


def test_dp_rows_are_devices_of_one_rank():
    run = summarize(played(dp_run()))
    assert [(r.rank, r.device) for r in run.ranks] == [(0, f"vgpu:{d}") for d in range(4)]
    assert run.world_size == 4
    assert run.devices == "virtual"
    assert run.state == "finished"


def test_dp_traffic_is_the_sum_of_copies():
    run = summarize(played(dp_run(param_bytes=1000)))
    assert [r.sent_bytes_per_step for r in run.ranks] == [3000, 1000, 1000, 1000]
    assert [r.received_bytes_per_step for r in run.ranks] == [3000, 1000, 1000, 1000]
    assert run.balance.traffic_device0_over_median == 3.0
    assert run.balance.peak_device0_over_median == 5900 / 3200
    assert run.balance.peak_max_over_min == 5900 / 3200
    assert run.ranks[0].comm_ms.total == 6.0
    assert run.ranks[1].comm_ms.total == 2.0


def test_ddp_bytes_are_payload_and_ring():
    run = summarize(played(ddp_run(nbytes=1200)))
    (reduce,) = run.collectives
    assert reduce.count_per_step == 2
    assert reduce.bytes_per_step == 1500
    assert {r.sent_bytes_per_step for r in run.ranks} == {2 * 3 * 1200 // 4 + 2 * 3 * 300 // 4}
    assert reduce.algbw_gbps == pytest.approx(1500 / 5e-3 / 1e9)
    assert reduce.busbw_gbps == pytest.approx(1500 / 5e-3 / 1e9 * 1.5)
    assert reduce.latency_ms.p50 == 2.5
    assert reduce.exposed_ms_per_step == 7.0
    assert run.ranks[0].comm_ms.total == 5.0
    assert run.balance.traffic_device0_over_median == 1.0


def test_a_view_carries_the_last_steps_of_the_first_rows():
    steps = [step(i, device=d) for i in range(LANE_STEPS + 5) for d in range(2)]
    devices = [f"vgpu:{d}" for d in range(LANES + 3)]
    seen = view(played([batch(hello(devices=devices), *steps)]))
    assert [lane.device for lane in seen.lanes] == devices[:LANES]
    assert [each.step for each in seen.lanes[1].steps] == list(range(5, LANE_STEPS + 5))
    assert seen.lanes[2].steps == ()
    assert [(r.rank, r.device) for r in seen.run.ranks[:LANES]] == [
        (lane.rank, lane.device) for lane in seen.lanes
    ]


def waited(op, seq, *, at_ms, took_ms, blocked_ms):
    call = collective(0, seq, nbytes=100, ranks=1, at_ms=at_ms, took_ms=took_ms, op=op)
    blocked_ns = None if blocked_ms is None else blocked_ms * MS
    return [
        msgspec.structs.replace(call, step=i, seq=2 * i + seq, blocked_ns=blocked_ns)
        for i in range(5)
    ]


@pytest.mark.parametrize(("scatter_ms", "rank_ms"), [(4, 9), (None, 7)])
def test_exposed_time_is_the_callers_waits_if_all_are_known(scatter_ms, rank_ms):
    steps = [step(i, exposed_ns=7 * MS, comm_ns=10 * MS) for i in range(5)]
    gathers = waited("all_gather", 0, at_ms=10, took_ms=6, blocked_ms=5)
    scatters = waited("reduce_scatter", 1, at_ms=20, took_ms=4, blocked_ms=scatter_ms)
    run = summarize(played([batch(hello()), batch(*gathers, *scatters, *steps, seq=1)]))
    exposed = {stats.op: stats.exposed_ms_per_step for stats in run.collectives}
    assert exposed == {"all_gather": 5.0, "reduce_scatter": scatter_ms}
    assert run.ranks[0].comm_ms.exposed == rank_ms
    assert run.ranks[0].comm_ms.total == 10.0


def test_last_arrival_names_who_made_the_others_wait():
    run = summarize(played(ddp_run()))
    last = run.collectives[0].last_arrival
    assert (last.rank, last.share, last.wait_ms) == (2, 1.0, 4.0)
    assert run.ranks[2].comm_ms.wait == 0.0
    assert run.ranks[0].comm_ms.wait == 8.0


def test_loss_is_the_mean_over_ranks():
    run = summarize(played(ddp_run(steps=10)))
    assert run.loss.first == pytest.approx(5.0 + 0.06 / 4)
    assert run.loss.last == pytest.approx(4.1 + 0.06 / 4)


def test_heartbeats_count_steps_without_records():
    state = played([batch(hello()), batch(step(0), step(9), seq=1), batch(Beat(17, ""), seq=2)])
    assert summarize(state).steps == 17
    advance(state, batch(step(10), seq=3))
    assert summarize(state).steps == 17


def test_a_pipelines_loss_comes_from_the_ranks_that_have_one():
    state = RunState("run")
    for r in range(3):
        apply(state, batch(hello(3), rank=r))
    told = []
    for i in range(80):
        apply(state, batch(step(i), rank=0, seq=i + 1))
        apply(state, batch(step(i), rank=1, seq=i + 1))
        apply(state, batch(step(i, loss=80.0 - i), rank=2, seq=i + 1))
        told.append(summarize(state).loss)
    assert told[8] == Loss(None, None)  # the others may still tell theirs
    assert told[20] == Loss(80.0, 60.0)
    assert told[79] == Loss(None, 1.0)  # the first are kept no longer


def test_a_loss_that_some_ranks_never_report_is_dropped():
    frames = [batch(hello(2)), batch(hello(2), rank=1)]
    for i in range(200):
        frames.append(batch(step(i, loss=1.0), seq=i + 1))
        frames.append(batch(step(i, loss=3.0 if i % 10 == 0 else None), rank=1, seq=i + 1))
    state = played(frames)
    assert state.last_loss == (190, 2.0)
    assert set(state.loss.values) == {2.0}
    assert len(state.losses) < 100


def test_throughput_counts_every_device():
    assert summarize(played(dp_run())).samples_per_s == pytest.approx(4 * 4 / 0.1)
    assert summarize(played(ddp_run())).samples_per_s == pytest.approx(4 * 4 / 0.1)


def test_phases_sum_to_the_median_step():
    frames = [batch(hello())] + [
        batch(step(i, forward_ns=30 * MS, backward_ns=50 * MS, optimizer_ns=5 * MS), seq=i + 1)
        for i in range(9)
    ]
    phases = summarize(played(frames)).ranks[0].phases_ms
    assert (phases.forward, phases.backward, phases.optimizer) == (30, 50, 5)
    assert phases.other == 15
    assert phases.h2d is None


def test_phases_that_overfill_the_median_step_are_scaled_to_it():
    frames = [batch(hello())] + [
        batch(step(i, forward_ns=(90 if i % 2 else 60) * MS, backward_ns=40 * MS), seq=i + 1)
        for i in range(9)
    ]
    phases = summarize(played(frames)).ranks[0].phases_ms
    measured = [v for v in msgspec.structs.asdict(phases).values() if v is not None]
    assert sum(measured) == pytest.approx(100)


def test_shares_count_only_steps_in_which_they_were_measured():
    frames = [batch(hello())] + [
        batch(step(i, gil_wait_ns=20 * MS if i % 2 else None), seq=i + 1) for i in range(10)
    ]
    row = summarize(played(frames)).ranks[0]
    assert row.gil_wait == pytest.approx(0.2)
    assert row.idle is None


def test_memory_keeps_the_highest_peak_and_the_latest_level():
    frames = [
        batch(hello(), memory(1, 500, params=400, grads=100)),
        batch(memory(2, 900, params=400, grads=500), seq=1),
        batch(memory(3, 600, params=400, grads=200), step(3), seq=2),
    ]
    use = summarize(played(frames)).ranks[0].memory
    assert (use.peak_bytes, use.current_bytes) == (900, 600)
    assert (use.params, use.grads, use.optimizer) == (400, 500, None)
    assert (use.at_step_end.grads, use.at_step_end.temp) == (200, None)


def test_unmeasured_figures_are_unknown_and_not_zero():
    run = summarize(played([batch(hello(4))]))
    row = run.ranks[0]
    assert run.state == "starting"
    assert row.step_ms.p50 is None
    assert row.memory.peak_bytes is None
    assert row.sent_bytes_per_step is None
    assert run.loss.first is None
    assert run.balance.peak_max_over_min is None


def test_a_timed_total_needs_all_calls_timed():
    frames = [batch(hello(1))]
    for i in range(6):
        calls = [
            collective(i, 2 * i, nbytes=8, ranks=1, at_ms=i, took_ms=1),
            collective(i, 2 * i + 1, nbytes=8, ranks=1, at_ms=i),
        ]
        frames.append(batch(*calls, step(i), seq=i + 1))
    assert summarize(played(frames)).ranks[0].comm_ms.total is None


def test_state_is_encoded_completely():
    state = played(ddp_run(steps=5))
    copy = decode(encode(state))
    assert copy == state
    assert view(copy) == view(state)


def test_a_run_without_steps_is_hung_and_recovers():
    frames = [batch(hello()), *(batch(step(i), seq=i + 1) for i in range(5))]
    state = played(frames)
    quiet = START_NS + 10_000 * MS
    advance(state, batch(Beat(5, "forward"), seq=6, now_ns=quiet))
    run = summarize(state)
    assert (run.state, run.ranks[0].state) == ("hung", "stalled")
    advance(state, batch(step(99), seq=7, now_ns=quiet))
    assert summarize(state).state == "running"


def test_failed_and_lost_ranks_say_why():
    for word in ("failed", "lost"):
        state = played([batch(hello(2)), batch(hello(2), rank=1)])
        advance(state, batch(Bye(word, "it broke"), rank=1, seq=-1))
        run = summarize(state)
        assert (run.state, run.reason) == (word, "rank 1: it broke")


def test_a_run_has_not_finished_before_its_last_rank_reports():
    state = played([batch(hello(2), step(0)), batch(Bye("finished"), seq=1)])
    assert summarize(state).state == "running"
    late = batch(hello(2), step(0), Bye("finished"), rank=1)
    assert summarize(played([batch(hello(2), step(0), Bye("finished")), late])).state == "finished"
    advance(state, batch(Tick(), rank=HUB_RANK, now_ns=START_NS + 2_001 * MS))
    assert summarize(state).state == "finished"


def test_a_lost_rank_is_the_cause_and_not_its_peers():
    state = played([batch(hello(2)), batch(hello(2), rank=1)])
    advance(state, batch(Bye("failed", "connection reset by peer"), seq=1))
    advance(state, batch(Bye("lost", "gone"), rank=1, seq=-1))
    assert summarize(state).reason == "rank 1: gone"


def test_collectives_of_start_up_are_not_listed():
    frames = [batch(hello(), collective(0, 0, nbytes=99, ranks=1, at_ms=0, op="broadcast"))]
    state = played(frames)
    assert [c.op for c in summarize(state).collectives] == ["broadcast"]
    for i in range(4):
        advance(state, batch(collective(i, i + 1, nbytes=8, ranks=1, at_ms=i), step(i), seq=i + 1))
    assert [c.op for c in summarize(state).collectives] == ["all_reduce"]


def test_a_lost_rank_that_sends_again_is_back():
    state = played([batch(hello()), batch(step(0), seq=1)])
    advance(state, batch(Bye("lost", "gone"), seq=-1))
    advance(state, batch(step(1), seq=2))
    assert summarize(state).state == "running"


def test_a_restarted_rank_counts_from_zero():
    state = played(ddp_run(steps=5, ranks=2))
    advance(state, batch(hello(2), rank=1, pid=77))
    assert state.ranks[1].pid == 77
    assert state.ranks[1].lanes == {}


def test_the_hubs_own_frames_create_no_row():
    state = played([batch(Tick(), rank=HUB_RANK)])
    assert state.ranks == {}


def test_hostile_numbers_do_not_raise():
    advance(RunState("run"), batch(collective(0, 0, nbytes=-1, ranks=0, at_ms=0)))


def test_state_is_bounded():
    state = RunState("run")
    sizes = []
    for i in range(2000):
        late = collective(i, i, nbytes=8, ranks=2, at_ms=i, took_ms=1)
        advance(state, batch(late, step(i, loss=1.0), memory(i, 10), seq=i))
        if i in (1000, 1999):
            sizes.append(len(encode(state)))
    assert sizes[1] < 1.3 * sizes[0]
    assert len(state.ranks[0].lanes[0].recent.took_ns()) == WINDOW


def test_thinned_curves_keep_both_ends_and_stay_short():
    curve = Thinned()
    for i in range(10_000):
        curve.push(i, float(i))
    frozen = curve.freeze()
    assert frozen.steps[0] == 0
    assert frozen.steps[-1] > 9_900
    assert CURVE_POINTS <= len(frozen.steps) < 2 * CURVE_POINTS
    assert all(s == v for s, v in zip(frozen.steps, frozen.values, strict=True))


def test_quantile_agrees_with_the_standard_library():
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0]
    twentieths = statistics.quantiles(values, n=20, method="inclusive")
    assert quantile(values, 0.95) == pytest.approx(twentieths[18])
    assert quantile(values, 0.5) == statistics.median(values)
    assert quantile([], 0.5) is None


def test_the_first_step_names_no_late_rank_and_old_calls_fade():
    def calls(step_index, late):
        for r in range(2):
            at = step_index * 100 + (5 if r == late else 0)
            yield batch(
                collective(step_index, step_index, nbytes=8, ranks=2, at_ms=at), rank=r, seq=1
            )

    state = played(calls(0, late=1))
    assert summarize(state).collectives[0].last_arrival is None
    for i in range(1, 2000):
        for frame in calls(i, late=1 if i < 500 else 0):
            advance(state, frame)
    last = summarize(state).collectives[0].last_arrival
    assert (last.rank, last.wait_ms) == (0, pytest.approx(5.0, abs=0.01))
    assert last.share > 0.8


def test_every_kind_of_entry_is_bounded(monkeypatch):
    """Records beyond a limit are refused, and counted as dropped."""
    for name, most in (("RANKS", 9), ("LANES", 20), ("LANES_A_RANK", 5), ("OPS", 7), ("CELLS", 8),
                       ("CELLS_A_RANK", 6), ("ROUTES", 4)):  # fmt: skip
        monkeypatch.setattr(bounds, name, most)
    state = RunState("run")
    for i in range(100):
        advance(state, batch(step(0), rank=i))
        advance(state, batch(step(i, device=i), collective(i, i, nbytes=8, ranks=1, at_ms=i,
                                                           group=f"new {i}"),
                             Transfer(i, f"kind {i}", 0, 1, 8, MS)))  # fmt: skip
    flush(state)
    assert len(state.ranks) == 9
    assert state.refused == 91
    assert len(state.ranks[0].lanes) == 5
    assert state.lanes == sum(len(rank.lanes) for rank in state.ranks.values())
    assert len(state.ops) == 6
    assert len(state.arrivals.matched) <= 7
    assert len(state.routes) == 4
    run = summarize(state)
    assert run.ranks[0].dropped == 300 - 5 - 6 - 4
    advance(state, batch(step(0), rank=0, pid=5))  # a restarted rank has its room again
    assert state.lanes == sum(len(rank.lanes) for rank in state.ranks.values())


def test_sums_stay_within_64_bits():
    state = RunState("run")
    most = Collective(0, "all_reduce", "default", 1, 0, 1 << 43, 0, 1 << 61, 1 << 55)
    far = Transfer(0, "reduce", 1, 0, 1 << 43, 1 << 55)
    for _ in range(200):
        apply(state, batch(*[most] * 32, *[far] * 32))
    encode(state)
    assert summarize(state).ranks[0].dropped > 6000


def test_a_repeated_step_fills_no_curve():
    curve = Thinned()
    for _ in range(10_000):
        curve.push(0, 1.0)
    assert len(curve.steps) < 2 * CURVE_POINTS
    assert curve.stride < 1 << 63


def test_records_lost_on_the_way_are_counted_as_dropped():
    state = RunState("run")
    for sent, count in ((0, 3), (3, 5), (18, 2), (20, 1)):  # ten are missing before the third
        frame = batch(*[step(i) for i in range(count)], seq=sent, dropped=4)
        apply(state, msgspec.structs.replace(frame, sent=sent))
    assert summarize(state).ranks[0].dropped == 4 + 10


def test_repeated_goodbyes_trigger_one_review(monkeypatch):
    reviews = []
    monkeypatch.setattr(
        "dpwatch.run.diagnose.advance.review", lambda *_: (reviews.append(1), ([], {}))[1]
    )
    state = RunState("run")
    for i in range(20):
        advance(state, batch(Tick(), Bye("finished"), seq=i))
    assert len(reviews) == 1
