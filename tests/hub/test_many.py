"""Many ranks: their figures, and encoded states."""

import math
import statistics
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpwatch.plan.traffic import wire_bytes
from dpwatch.run.derive import summarize
from dpwatch.run.derive.lane_metrics import figures_of
from dpwatch.run.derive.rank_metrics import complete_steps
from dpwatch.run.derive.summarize import rows_of, view
from dpwatch.run.diagnose.advance import MANY, advance
from dpwatch.run.state.curves import Thinned
from dpwatch.run.state.encoding import decode, encode
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import CALLS, NBYTES, WINDOW, ByStep
from dpwatch.wire import codec
from dpwatch.wire.messages import Bye, Collective, Step, Tick, Transfer
from tests.frames import MS, START_NS, batch, collective, hello, memory, played, step
from tests.hubs import has, rank, serving, until, watching
from tests.run import lane_by_lane


@st.composite
def runs(draw):
    """Frames of a few ranks, whose records may be unknown, missing, late or out of step."""
    rnd = draw(st.randoms(use_true_random=False))
    ranks, devices = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (4, 1), (5, 1)]))
    steps = draw(st.sampled_from([0, 1, 2, 7, 40, WINDOW + 9]))
    ops = draw(st.sampled_from([(), ("all_reduce",), ("all_gather", "reduce_scatter")]))
    kind = draw(st.sampled_from(["cpu", "cuda"]))
    unknown = draw(st.sampled_from([0.0, 0.3, 1.0]))

    def maybe(value):
        return None if rnd.random() < unknown else value

    frames = [
        batch(hello(ranks, [f"{kind}:{d}" for d in range(devices)], kind), rank=r)
        for r in range(ranks)
    ]
    held = {r: [] for r in range(ranks)}
    for i in range(steps):
        for r in range(ranks):
            for d in range(devices):
                for j, op in enumerate(ops):
                    issued = START_NS + i * 100 * MS + rnd.randrange(50 * MS)
                    held[r].append(
                        Collective(
                            i,
                            op,
                            "default",
                            ranks,
                            len(ops) * i + j,
                            100 + 10 * (r % 2),
                            issued,
                            maybe(issued + rnd.randrange(MS)),
                            maybe(rnd.randrange(MS)),
                            "f",
                            d,
                        )
                    )
                if d:
                    held[r].append(Transfer(i, "replicate", 0, d, 7, rnd.randrange(MS)))
                start = START_NS + i * 100 * MS
                end = start + 80 * MS + rnd.randrange(9 * MS)
                times = [maybe(rnd.randrange(20 * MS)) for _ in range(10)]
                held[r].append(Step(d, i, start, end, *times, 1.5, maybe(4), maybe(7 * MS)))
            held[r] = [each for each in held[r] if rnd.random() > 0.01]  # some are dropped
            if rnd.random() < 0.7:  # else they come with the next frame
                frames.append(batch(*held[r], rank=r, seq=i + 1, now_ns=START_NS + i * 100 * MS))
                held[r] = []
        if rnd.random() < 0.02:
            frames.append(batch(hello(ranks), rank=rnd.randrange(ranks), pid=5000 + i))
    return frames


@settings(max_examples=40, deadline=None)
@given(frames=runs())
def test_figures_of_many_lanes_equal_those_of_each_lane(frames):
    state = played(frames)
    lanes, common = rows_of(state), summarize.steps_in_common(state)
    together = figures_of(state, lanes, common)
    alone = lane_by_lane.figures_of(state, lanes, common)
    assert list(together.steps) == list(alone.steps)
    assert list(together.calls) == list(alone.calls)
    assert [together.op(key) for key in state.ops] == [alone.op(key) for key in state.ops]


@settings(max_examples=25, deadline=None)
@given(frames=runs(), data=st.data())
def test_a_state_continues_identically_after_encoding(frames, data):
    split = data.draw(st.integers(0, len(frames)))
    whole, travelled = played(frames), decode(encode(played(frames[:split])))
    for frame in frames[split:]:
        advance(travelled, frame)
    assert decode(encode(travelled)) == decode(encode(whole))
    assert view(travelled) == view(whole)


@settings(max_examples=25, deadline=None)
@given(frames=runs())
def test_key_figures_equal_sums_over_the_records(frames):
    """Compared with sums over the records themselves, for ranks that were not restarted."""
    records: dict[tuple[int, int], list[Step]] = {}
    sent: Counter[tuple[int, int, int]] = Counter()
    pids: dict[int, set[int]] = {}
    for frame in frames:
        pids.setdefault(frame.rank, set()).add(frame.pid)
        for record in frame.records:
            if isinstance(record, Step):
                records.setdefault((frame.rank, record.device), []).append(record)
            if isinstance(record, Collective):
                key = frame.rank, record.device, record.step
                sent[key] += wire_bytes(record.op, record.nbytes, record.ranks)
    state = played(frames)
    run = summarize.summarize(state)
    for lane, row in zip(rows_of(state), run.ranks, strict=True):
        steps = records.get((lane.rank, lane.device), [])[-WINDOW:]
        if not steps or len(pids[lane.rank]) > 1:
            continue
        took = [(s.end_ns - s.start_ns) / 1e6 for s in steps]
        assert row.step_ms.p50 == pytest.approx(statistics.median(took), rel=1e-12)
        forward = [s.forward_ns / 1e6 for s in steps if s.forward_ns is not None]
        if forward and sum(filter(None, _phases(row))) <= row.step_ms.p50:
            assert row.phases_ms.forward <= statistics.median(forward) * (1 + 1e-12)
        done, common = state.ranks[lane.rank].whole_steps, summarize.steps_in_common(state)
        over = complete_steps(common if done - common < WINDOW // 4 else done)
        if over and row.sent_bytes_per_step is not None and len(state.routes) == 0:
            mean = statistics.fmean(sent[lane.rank, lane.device, s] for s in over)
            assert row.sent_bytes_per_step == pytest.approx(mean, abs=1)


def _phases(row):
    return [getattr(row.phases_ms, name) for name in row.phases_ms.__struct_fields__]


@given(steps=st.lists(st.integers(0, 3 * WINDOW), max_size=300))
def test_tallies_of_the_last_steps_are_kept_in_any_order(steps):
    by_step, counted, newest = ByStep(), Counter(), 0
    for at_step in steps:
        newest = max(newest, at_step)
        at = by_step.at(at_step)
        if at is not None:
            by_step.cells[at + CALLS] += 1
            by_step.cells[at + NBYTES] += 10
        counted[at_step] += 1
    kept = range(max(0, newest - WINDOW // 2), newest + 1)
    for at_step, tally in zip(kept, by_step.over(kept), strict=True):
        assert tally.nbytes == 10 * tally.calls
        assert tally.calls == counted[at_step]
    assert by_step.column(CALLS, kept) == [tally.calls for tally in by_step.over(kept)]
    assert len(by_step.cells) <= 9 * WINDOW


def test_a_record_with_a_huge_number_is_refused_alone():
    state = RunState("run")
    huge = 2**63
    call = Collective(1, "all_reduce", "default", 1, 0, 2**63 - 1, 0)
    for i, records in enumerate(
        ([hello(), step(0)], [Step(0, 1, 0, huge), step(1)], [call, call], [step(2)])
    ):
        advance(state, codec.decode(codec.encode(batch(*records, seq=i, now_ns=2 * START_NS))))
    run = summarize.summarize(state)
    assert run.ranks[0].steps == 3
    assert run.ranks[0].dropped == 3


def test_a_missing_frame_is_counted():
    state = played([batch(hello(), seq=0), batch(step(0), seq=1), batch(step(5), seq=6)])
    assert state.ranks[0].received.missing == 4


def crowd(ranks=MANY + 6, steps=3):
    for r in range(ranks):
        yield batch(hello(ranks, strategy="ddp"), rank=r)
    for i in range(steps):
        for r in range(ranks):
            at = 100 * i + 40 + r / 100
            yield batch(
                collective(i, i, nbytes=1000, ranks=ranks, at_ms=at, took_ms=2),
                memory(i, 3200 + r, params=1000),
                step(i, loss=1.0),
                rank=r,
                seq=i + 1,
                now_ns=START_NS + (i + 1) * 100 * MS,
            )


def tick(after_s):
    return batch(Tick(), rank=-1, seq=-1, now_ns=START_NS + int(after_s * 1e9))


def test_simultaneous_ends_of_many_ranks_are_reviewed_once():
    state = RunState("run")
    reviewed = []
    frames = [*crowd(), tick(1)]
    ends = [batch(Bye("finished"), rank=r, seq=9) for r in range(MANY + 6)]
    for frame in [*frames, *ends, tick(2)]:
        run = advance(state, frame)
        reviewed += [run] if run is not None and len(state.ranks) > MANY else []
    assert [run.state for run in reviewed] == ["running", "finished"]


def test_a_viewer_of_many_ranks_sees_them_all():
    ranks = MANY + 6
    with serving() as hub, rank(hub.place) as send, watching() as early:
        frames = list(crowd(ranks))
        for frame in frames[:-ranks]:
            send(frame)
        seen = until(early, lambda s: s.runs and len(s.runs[0].run.ranks) == ranks)
        assert [row.device for row in seen.runs[0].run.ranks] == ["cpu"] * ranks
        for frame in frames[-ranks:]:
            send(frame)
        until(early, has("run", steps=3))
        with watching() as late:
            again = until(late, has("run", steps=3))
        assert again.runs[0].run.collectives[0].bytes_per_step == 1000
        for r in range(ranks):
            send(batch(Bye("finished"), rank=r, seq=9))
        assert until(early, has("run", state="finished")).runs[0].connection == "live"


def test_thinned_curves_stay_exact():
    curve = Thinned()
    for i in range(1000):
        curve.push(i, math.sqrt(i))
    assert all(v == math.sqrt(s) for s, v in zip(curve.steps, curve.values, strict=True))
