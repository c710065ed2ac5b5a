"""The timeline: parts of a step, clocks of several hosts, zoom and pan."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dpwatch.run.derive.timeline import APART_NS, clock_shifts, exposed_share, extent, stretches
from dpwatch.run.model import snapshot as s
from dpwatch.tui.draw.palette import palette
from dpwatch.tui.views.timeline.lanes import Window, caption, lane_bar, legend, step_line
from dpwatch.tui.views.timeline.widget import Timeline
from dpwatch.wire.messages import Step

from .conftest import calm, screen_text, shown
from .scenes import cluster_run, ddp_run, dp_run, snapshot, starting_run, with_lanes
from .states import hung

MS = 1_000_000

lengths = st.one_of(st.none(), st.integers(0, 10**9))


@calm
@given(
    took=st.integers(0, 10**9),
    values=st.lists(lengths, min_size=7, max_size=7),
    shares=st.booleans(),
)
def test_a_steps_parts_fill_it_without_holes(took, values, shares):
    data, h2d, forward, backward, optimizer, exposed, idle = values
    step = Step(device=0, step=1, start_ns=50, end_ns=50 + took, data_ns=data, h2d_ns=h2d,
                forward_ns=forward, backward_ns=backward, optimizer_ns=optimizer,
                exposed_ns=exposed, idle_ns=idle)  # fmt: skip
    parts = stretches(step, shares=shares)
    assert sum(part.end_ns - part.start_ns for part in parts) == took
    assert all(a.end_ns == b.start_ns for a, b in pairwise(parts))
    if parts:
        assert parts[0].start_ns == 50


def test_the_optimizer_ends_the_step_and_exposed_ends_backward():
    step = Step(device=0, step=1, start_ns=0, end_ns=100, data_ns=10, forward_ns=20,
                backward_ns=40, optimizer_ns=15, exposed_ns=12)  # fmt: skip
    assert [(part.name, part.start_ns, part.end_ns) for part in stretches(step)] == [
        ("data", 0, 10), ("forward", 10, 30), ("backward", 30, 58), ("exposed", 58, 70),
        ("other", 70, 85), ("optimizer", 85, 100),
    ]  # fmt: skip


def test_beside_other_devices_of_its_process_what_is_blocked_is_waiting():
    """As of DataParallel's devices, which wait for device 0 before and after their part."""
    step = Step(device=1, step=1, start_ns=0, end_ns=100 * MS, forward_ns=20 * MS,
                backward_ns=40 * MS, idle_ns=30 * MS)  # fmt: skip
    parts = [(part.name, part.end_ns - part.start_ns) for part in stretches(step, shares=True)]
    assert parts == [
        ("forward", 20 * MS), ("backward", 40 * MS), ("waiting", 30 * MS), ("other", 10 * MS),
    ]  # fmt: skip
    assert "waiting" not in {part.name for part in stretches(step)}  # for data, ranks, anything
    lane = s.LaneSteps(rank=0, device="vgpu:1", host="box", steps=(step,))
    window, colors = Window(start_ns=0, end_ns=100 * MS), palette(True, True)
    bar = lane_bar(lane, window, 0, 10, colors, shares=True)
    assert bar.plain == "|FBBBBWWW·"
    assert "W waiting" in legend(120, colors, shares=True).plain
    assert "waiting" not in legend(120, colors).plain
    assert "W 30.0 ms" in step_line(step, 100, colors, shares=True).plain


def test_hosts_are_laid_upon_each_other_at_their_newest_common_step():
    one = with_lanes(ddp_run()).lanes[0]
    far = s.LaneSteps(
        rank=1, device="a", host="other",
        steps=tuple(
            replace(step, start_ns=step.start_ns + 7 * 10**15, end_ns=step.end_ns + 7 * 10**15)
            for step in one.steps[:-2]
        ),
    )  # fmt: skip
    shifts = clock_shifts([one, far])
    assert shifts == {"box": 0, "other": -7 * 10**15}
    assert extent([one, far], shifts) == (one.steps[0].start_ns, one.steps[-3].end_ns)
    behind = replace(far, steps=tuple(replace(step, step=step.step - 99) for step in far.steps))
    assert clock_shifts([one, behind])["other"] == one.steps[-1].end_ns - far.steps[-1].end_ns
    assert clock_shifts([one, replace(far, steps=())])["box"] == 0
    assert extent([], {}) is None


def test_a_share_that_nobody_measured_is_unknown():
    steps = with_lanes(ddp_run(), late=None).lanes[0].steps
    assert exposed_share(steps[:1]) == pytest.approx(0.22)
    assert exposed_share([replace(step, exposed_ns=None) for step in steps]) is None


def test_the_newest_is_what_all_lanes_have_unless_one_is_silent():
    one, two = with_lanes(ddp_run(), late=None).lanes[:2]
    behind = replace(two, steps=two.steps[:-1])
    assert extent([one, behind], {}) == (one.steps[0].start_ns, behind.steps[-1].end_ns)
    silent = replace(two, steps=two.steps[:1])
    common = max(one.steps[0].end_ns, silent.steps[0].end_ns)
    for later, end in ((APART_NS, common), (APART_NS + 1, common + APART_NS + 1)):
        last = replace(one.steps[-1], end_ns=common + later)
        going_on = replace(one, steps=(*one.steps[:-1], last))
        assert extent([going_on, silent], {}) == (one.steps[0].start_ns, end)


def test_steps_that_were_only_counted_leave_a_gap_that_says_so():
    lane = with_lanes(ddp_run()).lanes[0]
    first, *between, last = lane.steps[:8]
    sparse = replace(lane, steps=(first, last))
    window = Window(start_ns=first.start_ns, end_ns=last.end_ns)
    text = lane_bar(sparse, window, 0, 80, palette(True, True)).plain
    assert len(text) == 80
    assert f"─ {len(between)} steps ─" in text
    one = replace(lane, steps=(lane.steps[0], lane.steps[2]))
    window = Window(start_ns=lane.steps[0].start_ns, end_ns=lane.steps[2].end_ns)
    assert "─ 1 step ─" in lane_bar(one, window, 0, 80, palette(True, True)).plain
    assert "─────" in lane_bar(one, window, 0, 15, palette(True, True)).plain
    assert "step" not in lane_bar(lane, window, 0, 80, palette(True, True)).plain


def test_without_colour_a_lane_is_letters():
    lane = with_lanes(ddp_run()).lanes[0]
    step = lane.steps[0]
    window = Window(start_ns=step.start_ns, end_ns=step.end_ns)
    text = lane_bar(lane, window, 0, 100, palette(True, True)).plain
    assert len(text) == 100
    assert text[0] == "|"
    assert {letter: text.count(letter) for letter in "HFBOE"} == {
        "H": 1, "F": 26, "B": 30, "O": 12, "E": 22,
    }  # fmt: skip
    assert text.index("F") < text.index("B") < text.index("E") < text.index("O")


def test_the_caption_says_what_is_not_measured_and_fits():
    for width in (79, 119, 199):
        assert "measured" in caption(width)
        assert len(caption(width)) <= width


def timeline_of(app):
    return app.query_one(Timeline)


@pytest.mark.parametrize("size", [(80, 24), (120, 35)])
async def test_the_head_says_who_is_waited_for(dashboard, size):
    late = with_lanes(ddp_run())
    calls = [
        replace(each, last_arrival=each.last_arrival and replace(each.last_arrival, share=0.81))
        for each in late.run.collectives
    ]
    late = replace(late, run=replace(late.run, collectives=calls))
    async with dashboard(snapshot(late), size=size) as (app, pilot):
        await pilot.press("5")
        text = screen_text(app)
        assert " · rank 2 comes last in 81% of calls, others wait 3.10 ms" in text
        assert ("E exposed: waits for communication" in text) == (size[0] > 80)
    async with dashboard(*hung(), size=size) as (app, pilot):
        await pilot.press("5")
        assert "newest · ranks 5, 7 are waited for" in screen_text(app)


async def test_nobody_is_named_who_is_not_mostly_last(dashboard):
    async with dashboard(snapshot(with_lanes(ddp_run()))) as (app, pilot):
        await pilot.press("5")
        assert "comes last" not in screen_text(app)


async def test_zoom_and_pan_by_keys(dashboard):
    async with dashboard(snapshot(with_lanes(ddp_run()))) as (app, pilot):
        await pilot.press("5")
        assert "300 ms on screen, newest" in screen_text(app)
        await pilot.press("plus")
        assert "150 ms on screen" in screen_text(app)
        await pilot.press("minus", "minus")
        assert "600 ms on screen" in screen_text(app)
        await pilot.press("left")
        assert "paused" in screen_text(app)
        await pilot.press(*["left"] * 20)
        assert timeline_of(app)._window.start_ns == timeline_of(app)._extent[0]
        await pilot.press("right")
        assert "paused" in screen_text(app)
        await pilot.press("f")
        assert ", newest" in screen_text(app)
        await pilot.press("left", "right")
        assert "on screen, newest" in screen_text(app)


async def test_a_step_back_while_paused(dashboard):
    view = with_lanes(ddp_run())
    async with dashboard(snapshot(view)) as (app, pilot):
        await pilot.press("5", "space", "comma")
        lane = view.lanes[0]
        before = timeline_of(app)._window
        assert before.start_ns in [step.start_ns for step in lane.steps]
        app._source.queue.put(snapshot(with_lanes(ddp_run(steps=170))))
        await shown(app, pilot, lambda: app.frame.newest_steps == 170)
        await pilot.press("comma")
        assert timeline_of(app)._window.start_ns < before.start_ns
        await pilot.press("full_stop")
        assert timeline_of(app)._window == before
        assert "PAUSED" in screen_text(app)


async def test_the_last_step_of_the_lane_is_told_and_enter_opens_the_rank(dashboard):
    async with dashboard(snapshot(with_lanes(ddp_run())), size=(80, 24)) as (app, pilot):
        await pilot.press("5", "j", "j")
        text = screen_text(app)
        assert "▸ 2 vgpu:2  D 2.00 ms H 1.00 ms F 26.0 ms B 52.0 ms O 12.0 ms E 5.10 ms" in text
        await pilot.press("enter", "escape")
        assert app.panel == "timeline"


async def test_of_many_ranks_the_first_are_shown_and_that_is_said(dashboard):
    async with dashboard(snapshot(with_lanes(cluster_run()))) as (app, pilot):
        await pilot.press("5")
        text = screen_text(app)
        assert "64 of 1024 ranks" in text
        assert "hosts aligned at the end of a step" in text
        await pilot.press("G")
        await pilot.pause()
        assert "▸ 63 cuda:7" in screen_text(app)


async def test_a_rank_without_a_step_leaves_the_others_theirs(dashboard):
    view = with_lanes(ddp_run())
    view = replace(view, lanes=(replace(view.lanes[0], steps=()), *view.lanes[1:]))
    async with dashboard(snapshot(view)) as (app, pilot):
        await pilot.press("5")
        text = screen_text(app)
        assert "▸ 0 vgpu:0  no step yet" in text
        assert "149" in text.splitlines()[5]


@pytest.mark.parametrize("scene", [starting_run, dp_run])
async def test_without_steps_it_says_so(dashboard, scene):
    async with dashboard(snapshot(scene()), size=(80, 24)) as (app, pilot):
        await pilot.press("5", "plus", "left", "comma", "f")
        assert "no step yet" in screen_text(app)
