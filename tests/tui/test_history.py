"""Stepping back through what this viewer has seen, and how often it looks."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from dpwatch.run.model import snapshot as s
from dpwatch.tui.snapshots.history import STEPS_A_ROW, History
from dpwatch.tui.snapshots.refresh_rate import INTERVALS_S, beside
from dpwatch.tui.views.registry import VIEWS
from dpwatch.tui.widgets.view import digit

from .conftest import screen_text, shown
from .scenes import cluster_run, ddp_run, dp_run, snapshot, with_lanes


def moments(number, view=ddp_run, **options):
    """Snapshots a quarter of a second apart, a step each."""
    return [
        snapshot(view(steps=step, **options), wall_s=1000.0 + step / 4)
        for step in range(10, 10 + number)
    ]


def steps_of(seen):
    return seen.runs[0].run.steps


def filled(snapshots, **limits):
    history = History(**limits)
    for each in snapshots:
        history.add(each)
    return history


def test_one_after_the_other_back_and_forward():
    history = filled(moments(5))
    assert history.ago_s is None
    assert [steps_of(history.step(-1)) for _ in range(4)] == [13, 12, 11, 10]
    assert (history.ago_s, history.edge) == (1.0, "oldest")
    assert history.step(-1) is None
    assert [steps_of(history.step(by)) for by in (1, 2)] == [11, 13]
    assert history.edge == ""
    assert steps_of(history.step(10)) == 14
    assert (history.ago_s, history.edge) == (0.0, "newest")
    assert history.step(1) is None
    history.release()
    assert history.ago_s is None


def test_what_comes_meanwhile_is_there_to_step_to():
    history = filled(moments(5))
    history.hold()
    for each in moments(8)[5:]:
        history.add(each)
    assert history.ago_s == 0.75
    assert steps_of(history.step(1)) == 15
    assert steps_of(history.step(-10)) == 10


def test_nothing_seen_yet():
    history = History()
    history.hold()
    assert history.step(-1) is None
    assert (history.ago_s, history.edge) == (None, "")


def test_it_is_bounded_by_frames_and_reaches_back_all_the_same():
    history = filled(moments(400), most_frames=50)
    assert len(history) == 50
    recent = [steps_of(history.step(-1)) for _ in range(5)]
    assert recent == [408, 407, 406, 405, 404]  # the last seconds are whole
    assert steps_of(history.step(-50)) == 10
    gaps = []
    while (seen := history.step(1)) is not None:
        gaps.append(steps_of(seen))
    gaps = [b - a for a, b in itertools.pairwise(gaps)]
    assert max(gaps) < 60
    assert sum(gaps[:10]) > sum(gaps[-10:])


@pytest.mark.parametrize(("most_rows", "kept"), [(1024, 16), (64, 1), (10, 1)])
def test_it_is_bounded_by_rows(most_rows, kept):
    history = filled(moments(40, ranks=64), most_rows=most_rows)
    assert len(history) == kept
    assert len(filled(moments(40, ranks=4), most_rows=most_rows)) == min(40, most_rows // 4)


def test_steps_of_the_timeline_take_room_too():
    lanes = with_lanes(ddp_run(ranks=4), steps=12)
    several = [snapshot(replace(lanes, run=replace(lanes.run)), wall_s=t) for t in range(9)]
    assert len(filled(several, most_rows=100)) == 100 // (4 + 4 * 12 // STEPS_A_ROW)


def test_a_run_that_stands_still_takes_its_room_once():
    ended = dp_run(state="finished")
    several = [snapshot(each.runs[0], ended, wall_s=each.wall_s) for each in moments(20, ranks=4)]
    assert len(filled(several, most_rows=4 + 20 * 4)) == 20


def test_what_is_looked_at_outlives_its_place():
    history = filled(moments(3), most_frames=3)
    history.step(-1)
    for each in moments(9)[3:]:
        history.add(each)
    assert history.ago_s == 7 / 4
    assert steps_of(history.step(1)) > 11


def test_curves_end_where_the_ranks_were():
    first, *_, last = moments(60)
    assert len(last.runs[0].history.loss.steps) > len(first.runs[0].history.loss.steps)
    history = filled([first, last])
    seen = history.step(-1).runs[0].history
    known = last.runs[0].history
    for curve, whole in (
        (seen.loss, known.loss),
        (seen.step_ms, known.step_ms),
        (seen.rank_peak_bytes[3], known.rank_peak_bytes[3]),
    ):
        assert curve.steps == tuple(step for step in whole.steps if step < 10)
        assert curve.values == whole.values[: len(curve.steps)]
    assert history.step(1) == last


def test_a_rank_that_has_come_since_has_no_curve_to_give():
    few, many = snapshot(ddp_run(ranks=2)), snapshot(ddp_run(ranks=4))
    seen = filled([many, few]).step(-1).runs[0].history
    assert [bool(curve.steps) for curve in seen.rank_step_ms] == [True, True, False, False]
    gone = filled([few, snapshot()]).step(-1)
    assert gone.runs[0].history == s.History()


def test_intervals():
    assert [beside(0.25, by) for by in (-1, 1)] == [0.1, 0.5]
    assert [beside(0.3, by) for by in (-1, 1)] == [0.25, 0.5]
    assert (beside(0.1, -1), beside(10.0, 1)) == (0.1, 10.0)
    assert list(INTERVALS_S) == sorted(INTERVALS_S)


async def feed(app, pilot, snapshots):
    """One after the other: what comes faster than it is drawn is left out."""
    for each in snapshots:
        app._source.queue.put(each)
        await shown(app, pilot, lambda each=each: app.snapshot is each)


async def test_brackets_step_back_and_space_goes_on_live(dashboard):
    first, *rest = moments(30)
    async with dashboard(first) as (app, pilot):
        await feed(app, pilot, rest)
        await pilot.press("left_square_bracket")
        assert app.paused
        head = screen_text(app).splitlines()[0]
        assert "PAUSED 1 steps behind, 0.2 s ago" in head
        await pilot.press("left_curly_bracket")
        assert steps_of(app.frame.snapshot) == 28
        await pilot.press("right_square_bracket")
        assert steps_of(app.frame.snapshot) == 29
        await pilot.press(*["left_curly_bracket"] * 3)
        assert "oldest kept" in screen_text(app).splitlines()[0]
        await pilot.press(*["right_curly_bracket"] * 3)
        assert "PAUSED newest" in screen_text(app).splitlines()[0]
        await pilot.press("space")
        assert not app.paused
        assert "PAUSED" not in screen_text(app)
        assert steps_of(app.frame.snapshot) == 39


async def test_in_every_view_and_on_a_ranks_page(dashboard):
    views = [with_lanes(each.runs[0]) for each in moments(3)]
    now = [snapshot(each, wall_s=1000.0 + 7 * n) for n, each in enumerate(views)]
    async with dashboard(now[0], size=(80, 24)) as (app, pilot):
        await feed(app, pilot, now[1:])
        places = [[digit(index)] for index in range(len(VIEWS))] + [["1", "enter"]]
        for keys in places:
            await pilot.press(*keys, "left_square_bracket", "left_square_bracket")
            head = screen_text(app).splitlines()[0]
            assert "14 s ago, oldest kept" in head, keys
            assert steps_of(app.frame.snapshot) == 10
            await pilot.press("right_square_bracket")
            assert "7.0 s ago" in screen_text(app).splitlines()[0]
            await pilot.press("space")
            assert steps_of(app.frame.snapshot) == 12


async def test_a_run_picked_is_picked_again_after_a_look_back_to_before_it(dashboard):
    then, now = snapshot(dp_run(), wall_s=1000.0), snapshot(ddp_run(), dp_run(), wall_s=1001.0)
    later = snapshot(dp_run(steps=150), ddp_run(), dp_run(), wall_s=1002.0)
    async with dashboard(then) as (app, pilot):
        await feed(app, pilot, (now, later))
        await pilot.press("n")
        picked = app.frame.run_id
        await pilot.press("left_curly_bracket", "space")
        assert app.frame.run_id == picked


async def test_brackets_are_text_in_the_filter(dashboard):
    async with dashboard(*moments(3)) as (app, pilot):
        await pilot.press("slash", "left_square_bracket", "plus")
        assert not app.paused


async def test_there_is_nothing_to_step_to_before_the_first_run(dashboard):
    async with dashboard() as (app, pilot):
        await pilot.press("left_square_bracket", "plus")
        assert not app.paused


async def test_plus_and_minus_change_the_interval_which_the_header_tells(dashboard):
    async with dashboard(snapshot(with_lanes(ddp_run()))) as (app, pilot):
        source = app._source
        assert source.interval_s == 0.25
        assert "every" not in screen_text(app).splitlines()[0]
        await pilot.press("plus")
        assert source.interval_s == 0.5
        assert "every 0.5 s" in screen_text(app).splitlines()[0]
        await pilot.press("minus", "minus", "minus", "minus")
        assert source.interval_s == 0.1
        assert "every 0.1 s" in screen_text(app).splitlines()[0]
        await pilot.press("5", "plus")  # there it zooms
        assert source.interval_s == 0.1
        await pilot.press("1", "enter", *["plus"] * 9)
        assert source.interval_s == 10.0
        await app.run_action("pace(-1)")
        assert source.interval_s == 5.0


def test_the_largest_runs_keep_some():
    history = filled([snapshot(cluster_run(ranks=4096), wall_s=t) for t in range(3)])
    assert len(history) == 3
