"""A viewer that connects after an hour sees the whole hour, compared with the raw feed.

The feed and its clock are simulated. A hub applies it like a real one, and a viewer connects at the
end.
"""

import math
import os
import random
import statistics
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwatch.hub.server import Hub
from dpwatch.run.derive.downsample import downsample
from dpwatch.run.derive.view_messages import ALL_POINTS
from dpwatch.run.model.snapshot import LANE_STEPS
from dpwatch.run.state.curves import CURVE_POINTS, Envelope, Thinned
from dpwatch.runtime import paths
from dpwatch.wire import codec
from dpwatch.wire.messages import Bye, Collective, Step, Tick
from tests.frames import MS, batch, hello, memory
from tests.hubs import DEADLINE_S, has, until, watching

HOUR_S = 3600
LATE_S = (1200, 1500)
MIB = 1 << 20
BEGAN_NS = 1_000_000_000


NOISE = 0.05


def law(part):
    """The loss without noise after a fraction of the hour."""
    return 5 * math.exp(-part)


class Feed:
    """An hour of records, and expected values computed from them.

    Rank 2 is late by half a step from minute 20 to minute 25.
    """

    def __init__(self, ranks, step_ms, batch_steps):
        self.ranks = ranks
        self.step_ms = step_ms
        self.steps = HOUR_S * 1000 // step_ms
        self.took_ms = {r: {} for r in range(ranks)}
        self.peak = {r: {} for r in range(ranks)}
        self.loss = {}
        self._batch_steps = batch_steps
        self._random = random.Random(7)

    def frames(self):
        for r in range(self.ranks):
            yield batch(hello(self.ranks), rank=r, now_ns=BEGAN_NS)
        for first in range(0, self.steps, self._batch_steps):
            steps = range(first, min(first + self._batch_steps, self.steps))
            now_ns = self.began_ns(steps[-1] + 1)
            for r in range(self.ranks):
                records = [record for i in steps for record in self._records(r, i)]
                yield batch(*records, rank=r, seq=1 + first, now_ns=now_ns)
            yield batch(Tick(), rank=-1, seq=-1, now_ns=now_ns)
        for r in range(self.ranks):
            yield batch(Bye("finished"), rank=r, seq=self.steps + 1, now_ns=now_ns)

    def began_ns(self, i):
        return BEGAN_NS + i * self.step_ms * MS

    def _records(self, r, i):
        at_s = i * self.step_ms / 1000
        start_ns, draw = self.began_ns(i), self._random
        took_ns = int(self.step_ms * MS * draw.uniform(0.8, 0.99) * (draw.random() > 0.001 or 0.1))
        self.took_ms[r][i] = took_ns / 1e6
        loss = law(at_s / HOUR_S) + draw.gauss(0, NOISE)
        self.loss[i] = self.loss.get(i, 0.0) + loss / self.ranks
        late = 0.5 if r == 2 and LATE_S[0] <= at_s < LATE_S[1] else 0
        issued_ns = start_ns + int(self.step_ms * MS * (0.25 + late))
        yield Collective(i, "all_reduce", "default", self.ranks, i, 64, issued_ns, issued_ns + MS)
        if i % 10 == 1:
            self.peak[r][i] = 100 * MIB + draw.randrange(50 * MIB)
            yield memory(i, self.peak[r][i])
        yield Step(0, i, start_ns, start_ns + took_ns, loss=loss)


def seen_late(feed):
    """The view of a viewer that connects once the hub has applied the whole feed."""
    place = paths.run_dir("run")
    lock = place.try_lock()
    hub = Hub(place, linger_s=3600)  # applying everything takes a while
    for frame in feed.frames():
        hub._apply(frame, codec.encode(frame))
    thread = threading.Thread(target=hub.serve)
    thread.start()
    try:
        with watching() as watcher:
            (view,) = until(watcher, has("run", steps=feed.steps, state="finished")).runs
    finally:
        hub.stop()
        thread.join(DEADLINE_S)
        hub.close()
        os.close(lock)
    return view


def covers(curve, raw, gap):
    """Checks that every point was in the feed, that gaps are small, and that both ends exist."""
    assert all(value == pytest.approx(raw[s]) for s, value in zip(*curve_of(curve), strict=True))
    assert max(b - a for a, b in pairwise([min(raw), *curve.steps, max(raw)])) <= gap


def curve_of(curve):
    return curve.steps, curve.values


def extremes(steps, values, wide):
    """The lowest and highest value of each interval of steps."""
    parts = {}
    for step, value in zip(steps, values, strict=True):
        parts.setdefault(step // wide, []).append(value)
    return {part: (min(found), max(found)) for part, found in parts.items()}


def test_a_viewer_that_returns_after_an_hour_has_the_hour():
    feed = Feed(ranks=3, step_ms=1000, batch_steps=2)
    view = seen_late(feed)
    run, history = view.run, view.history
    assert view.elapsed_s == pytest.approx(HOUR_S, abs=1)
    for r in range(feed.ranks):
        for curve, raw in (
            (history.rank_step_ms[r], feed.took_ms[r]),
            (history.rank_peak_bytes[r], feed.peak[r]),
        ):
            assert CURVE_POINTS <= len(curve.steps) < 2 * CURVE_POINTS
            covers(curve, raw, gap=feed.steps / 75)
            assert extremes(*curve_of(curve), 128) == extremes(raw, raw.values(), 128)
    assert history.step_ms == history.rank_step_ms[0]
    covers(history.loss, feed.loss, gap=feed.steps / 75)
    for eighth in range(8):
        few_of_it, all_of_it = (
            [v - law(s / feed.steps) for s, v in pairs if s * 8 // feed.steps == eighth]
            for pairs in (zip(*curve_of(history.loss), strict=True), feed.loss.items())
        )
        noise = 1.25 * (NOISE / feed.ranks**0.5) / len(few_of_it) ** 0.5
        assert abs(statistics.median(few_of_it) - statistics.median(all_of_it)) < 4 * noise
    assert (run.loss.first, run.loss.last) == (
        pytest.approx(feed.loss[0]), pytest.approx(feed.loss[feed.steps - 1])
    )  # fmt: skip
    late = [alert for alert in run.alerts if alert.kind == "straggler"]
    assert {rank for alert in late for rank in alert.ranks} == {2}
    # Minutes later it is one that was late now and then, until the window is past all that.
    assert LATE_S[0] < late[0].began_s - BEGAN_NS / 1e9 < LATE_S[0] + 60
    assert LATE_S[1] < late[0].ended_s - BEGAN_NS / 1e9 <= late[-1].ended_s < LATE_S[1] + 300
    for lane in view.lanes:
        told = [(s.step, (s.end_ns - s.start_ns) / 1e6) for s in lane.steps]
        assert told == list(feed.took_ms[lane.rank].items())[-LANE_STEPS:]


def test_many_ranks_also_return_after_an_hour():
    feed = Feed(ranks=100, step_ms=10_000, batch_steps=4)
    points = ALL_POINTS // feed.ranks
    view = seen_late(feed)
    for r in range(feed.ranks):
        curve, raw = view.history.rank_step_ms[r], feed.took_ms[r]
        assert points / 2 < len(curve.steps) <= points
        covers(curve, raw, gap=2 * feed.steps / (points / 2 - 1))
        assert (min(curve.values), max(curve.values)) == (min(raw.values()), max(raw.values()))
    covers(view.history.loss, feed.loss, gap=8)
    assert [alert.ranks for alert in view.run.alerts if alert.kind == "straggler"] == [[2]]
    assert view.elapsed_s == pytest.approx(HOUR_S, abs=6)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(-5, 5)), max_size=2000))
def test_an_envelope_has_every_peak(moves):
    curve, raw, step = Envelope(), {}, 0
    for ahead, value in moves * 3:
        step += ahead
        raw[step] = float(value)
        curve.push(step, value)
    assert len(curve.steps) < 2 * CURVE_POINTS
    assert list(curve.steps) == sorted(set(curve.steps))
    assert all(raw[s] == v for s, v in zip(curve.steps, curve.values, strict=True))
    wide = curve.stride
    assert extremes(curve.steps, curve.values, wide) == extremes(raw, raw.values(), wide)
    alone = curve.downsample(64)
    assert downsample([curve, Envelope(), curve], 64) == [alone, Envelope().downsample(64), alone]
    if raw:
        assert len(alone[0]) <= 64
        assert (min(alone[1]), max(alone[1])) == (min(curve.values), max(curve.values))
        assert (alone[0][0], alone[0][-1]) == (curve.steps[0], curve.steps[-1])


@pytest.mark.parametrize("kind", [Thinned, Envelope])
@pytest.mark.parametrize(("every", "first"), [(10, 9), (10, 5), (7, 3), (80, 79), (1, 0)])
def test_curves_keep_points_whatever_steps_have_values(kind, every, first):
    """As in a script that reports its loss at steps 9, 19, 29, …, none of which is even."""
    curve = kind()
    last = first + every * 19_999
    for i in range(first, last + 1, every):
        curve.push(i, float(i))
    assert CURVE_POINTS / 2 <= len(curve.steps) < 2 * CURVE_POINTS
    assert max(b - a for a, b in pairwise([first, *curve.steps, last])) <= (last - first) / 60


@pytest.mark.parametrize("kind", [Thinned, Envelope])
def test_restarted_steps_replace_later_points(kind):
    curve = kind()
    for i in range(5000):
        curve.push(i, 1.0)
    for i in range(1000, 3000):
        curve.push(i, 2.0)
    assert list(curve.steps) == sorted(curve.steps)
    assert {v for s, v in zip(curve.steps, curve.values, strict=True) if s < 1000} == {1.0}
    assert {v for s, v in zip(curve.steps, curve.values, strict=True) if s > 1040} == {2.0}
    assert 2900 < curve.steps[-1] < 3000
