"""`s`: where ranks stand in their Python, all of them or the one whose page is open."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dpwatch.run.model.stacks import RankStacks
from dpwatch.tui.app import DashboardApp
from dpwatch.tui.draw.palette import palette
from dpwatch.tui.views.stacks.lines import stack_lines
from dpwatch.wire.messages import ThreadStack

from .conftest import screen_text, shown
from .scenes import QueueSource, ddp_run, dp_run, snapshot, stuck_run, with_alerts


def told(view, rank=None, width=80, hint=""):
    lines = stack_lines(view, rank, width, palette(), hint)
    assert {line.cell_len for line in lines} == {width}
    return "\n".join(line.plain.rstrip() for line in lines)


def test_all_ranks_are_named_above_and_stand_together_below():
    text = told(stuck_run())
    assert text.startswith("stacks of 8 ranks   taken 2 s ago   innermost frame first")
    assert "ranks 0-4, 6  train.py:61 main" in text
    assert "rank 5        data/tokens.py:31 pad_to_longest" in text
    assert "rank 7        no answer for 4 s: its process is stopped" in text
    assert text.count("distributed_c10d.py:2963 all_reduce") == 1
    assert "6 other threads" in text
    inner, outer = text.index("▸ data/tokens.py:31"), text.index("  train.py:58 main")
    assert inner < outer
    assert "last seen at train.py:61 main, 4 s ago" in text.replace("\n  ", " ")


def test_a_rank_has_all_its_threads():
    text = told(stuck_run(), rank=5)
    assert "MainThread (trains) · tid 5005" in text
    assert "Thread-1 (_pin) · tid 5105" in text
    assert "all_reduce" not in text


def test_a_silent_rank_keeps_what_it_told_before():
    before = stuck_run().stacks[5]
    silent = replace(before, standing="silent", why="no answer for 9 s: x", age_s=60.0)
    text = told(replace(ddp_run(), stacks=(silent,)), rank=5)
    assert "no answer for 9 s: x; last seen at train.py:61 main" in text
    assert "before, taken 60 s ago:" in text
    assert "data/tokens.py:31" in text
    text = told(replace(ddp_run(), stacks=(silent,)))
    assert "data/tokens.py:31" not in text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"run": {"state": "finished"}}, "the run is over"),
        ({"connection": "stale"}, "hub does not report"),
        ({}, "the hint"),
    ],
)
def test_why_there_is_nothing_yet_is_said(more, words):
    view = ddp_run()
    run = replace(view.run, **more.pop("run", {}))
    assert words in told(replace(view, run=run, **more), hint="the hint")


def test_text_of_ranks_is_only_text():
    bad = "[bold red]\x1b[31m\x1b]0;owned\x07[/] [@click=app.quit]\u202e" * 9
    threads = (
        ThreadStack(bad, True, 1, [bad, "", "x", "漢字" * 60], 0),
        ThreadStack("", False, None, []),
    )
    one = RankStacks(
        rank=0, host=bad, pid=1, asked=1, answered=1, standing="answered", why=bad,
        waited_s=None, age_s=0.0, threads=threads, left_out=9, seen_at=bad,
    )  # fmt: skip
    two = replace(one, rank=1, threads=(), standing="silent", seen_s=1.0)
    view = replace(ddp_run(), stacks=(one, two))
    for text in (told(view), told(view, 0), told(view, 1)):
        assert not any(ord(c) < 32 and c != "\n" for c in text)
        assert "\u202e" not in text
    assert "[bold red]" in told(view, 0)
    assert "a thread that Python has not started" in told(view, 0)


async def test_s_asks_all_ranks_and_again_on_the_panel(dashboard):
    async with dashboard(snapshot(ddp_run())) as (app, pilot):
        await pilot.press("s")
        assert app.panel == "stacks"
        assert "asked; answers arrive" in screen_text(app)
        await pilot.press("s")
        assert app._source.asked == [("run-ddp", ())] * 2
        now = snapshot(stuck_run())
        app._source.queue.put(now)
        await shown(app, pilot, lambda: app.snapshot == now)
        assert "pad_to_longest" in screen_text(app)
        await pilot.press("escape")
        assert app.panel == "overview"


async def test_on_a_ranks_page_s_asks_that_rank_and_the_way_back_leads_there(dashboard):
    async with dashboard(snapshot(stuck_run())) as (app, pilot):
        await pilot.press("j", "enter", "s")
        assert app._source.asked == [("run-ddp", (1,))]
        assert "stacks of rank 1" in screen_text(app)
        await pilot.press("question_mark", "escape")
        assert app.panel == "stacks"
        await pilot.press("s", "escape")
        assert app._source.asked == [("run-ddp", (1,))] * 2
        assert app.panel == "rank"
        await pilot.press("escape", "s")
        assert "stacks of 8 ranks" in screen_text(app)


async def test_from_an_alert_its_runs_ranks_are_asked(dashboard):
    quiet = replace(ddp_run(), run=replace(ddp_run().run, diagnoses=[]))
    async with dashboard(snapshot(quiet, with_alerts())) as (app, pilot):
        await pilot.press("8", "s")
        assert app._source.asked == [("run-dp", ())]
        assert app.frame.run_id == "run-dp"
        await pilot.press("escape")
        assert app.panel == "alerts"


async def test_answers_come_through_a_held_screen(dashboard):
    async with dashboard(snapshot(ddp_run())) as (app, pilot):
        await pilot.press("space", "s")
        app._source.queue.put(snapshot(stuck_run()))
        await shown(app, pilot, lambda: "pad_to_longest" in screen_text(app))
        assert app.paused


async def test_another_runs_ranks_have_not_been_asked(dashboard):
    async with dashboard(snapshot(ddp_run(), dp_run())) as (app, pilot):
        await pilot.press("s", "p")
        assert "s asks the ranks" in screen_text(app)
        await pilot.press("s")
        assert [run_id for run_id, _ in app._source.asked] == ["run-ddp", "run-dp"]


async def test_the_stacks_are_copied_whole(dashboard):
    async with dashboard(snapshot(stuck_run()), size=(80, 24)) as (app, pilot):
        await pilot.press("s", "y")
        assert "ranks 0-4, 6 (6 of 8): at train.py:61 main, taken 2 s ago" in app.clipboard
        assert "no answer for 4 s" in app.clipboard
        await pilot.press("G")
        await pilot.pause()
        assert "stacks of 8 ranks" not in screen_text(app)  # it scrolls


async def test_without_a_run_there_is_nobody_to_ask(dashboard):
    async with dashboard(snapshot()) as (app, pilot):
        await pilot.press("s")
        assert app.panel == "overview"
        assert app._source.asked == []


async def test_the_footer_offers_stacks_with_a_run_and_the_next_run_with_two(dashboard):
    for runs, words in (((), 0), ((ddp_run(),), 1), ((ddp_run(), dp_run()), 2)):
        async with dashboard(snapshot(*runs), size=(80, 24)) as (_, pilot):
            await pilot.pause()
            footer = screen_text(pilot.app).splitlines()[-1]
            assert ("s Stacks" in footer, "Next run" in footer) == (words > 0, words > 1)


class Recording:
    """A source that nobody can be asked through."""

    def __init__(self, *snapshots):
        self._source = QueueSource(*snapshots)

    def next(self, timeout_s):
        return self._source.next(timeout_s)

    def close(self):
        self._source.close()


async def test_a_recording_can_ask_nobody():
    now = snapshot(ddp_run())
    app = DashboardApp(Recording(now))
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(app, pilot, lambda: app.snapshot == now)
        await pilot.press("s")
        assert "this is a recording" in screen_text(app)
