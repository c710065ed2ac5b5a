"""The view of what ranks print: which lines, how they are broken, and its keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len
from textual import events
from textual.widgets import Input

from dpwatch.run.model import snapshot as s
from dpwatch.tui.app import DashboardApp
from dpwatch.tui.draw.palette import palette
from dpwatch.tui.views.output import widget as output_view
from dpwatch.tui.views.output.lines import Choice, entries, foot_line, head_line, pieces
from dpwatch.tui.views.output.widget import Output

from .conftest import calm, resized, screen_text, shown
from .scenes import (
    QueueSource,
    ddp_run,
    dp_run,
    hostile_output,
    snapshot,
    starting_run,
    with_output,
)

S = 1_000_000_000


def printed(rank, *lines, **lost):
    """A rank's output: (second, text) each, to stderr where the text begins with `!`."""
    return s.RankOutput(
        rank,
        tuple(s.Printed(at * S, "err" if t.startswith("!") else "out", t) for at, t in lines),
        **lost,
    )


def texts(output, **choice):
    return [each[2].text for each in entries(output, Choice(**choice))]


def test_ranks_are_interleaved_by_time_and_at_one_moment_in_their_order():
    output = (printed(0, (1, "a"), (3, "b"), (5, "c")), printed(1, (2, "d"), (3, "e")))
    assert texts(output) == ["a", "d", "b", "e", "c"]


def test_one_rank_one_stream_some_words():
    output = (printed(0, (1, "Loss 1"), (2, "!warn loss")), printed(1, (3, "loss 2"), (4, "x")))
    assert texts(output, rank=1) == ["loss 2", "x"]
    assert texts(output, only_err=True) == ["!warn loss"]
    assert texts(output, terms="LOSS") == ["Loss 1", "!warn loss", "loss 2"]
    assert texts(output, terms="2 loss") == ["loss 2"]


@calm
@given(st.text(max_size=120), st.integers(8, 50))
def test_a_line_is_broken_without_loss(text, room):
    parts = pieces(text, room)
    assert all(cell_len(part) <= room for part in parts)
    assert "".join(parts) == pieces(text, 10_000)[0]


def test_lines_break_at_blanks_where_these_are_near():
    assert pieces("one two three four", 12) == ("one two ", "three four")
    assert pieces("x" * 25, 10) == ("x" * 10, "x" * 10, "x" * 5)


async def newest(app, pilot, view):
    app._source.queue.put(snapshot(view))
    await shown(app, pilot, lambda: app.frame.view is view)


def test_the_head_tells_how_many_ranks_have_printed():
    view, colors = with_output(ddp_run()), palette()
    told = {
        number: head_line(replace(view, output=view.output[:number]), Choice(), 5, 80, colors).plain
        for number in (4, 2)
    }
    assert told[4].startswith("all 4 ranks  stdout, and stderr marked !")
    assert told[2].startswith("2 of 4 ranks")
    one = replace(dp_run(), output=(printed(0, (1, "a")),))
    assert head_line(one, Choice(), 1, 80, colors).plain.startswith("the only rank")


@pytest.mark.parametrize(
    ("below", "lost", "width", "words"),
    [
        (None, {}, 80, "● following the newest line"),
        (3, {}, 80, "‖ held, 3 more below: G follows again"),
        (None, {"left_out": 7, "let_go": 1000}, 80, "7 left out, too many at once; 1,000 older"),
        (3, {"left_out": 7, "let_go": 1000}, 70, "7 left out, 1,000 not kept"),
        (3, {"left_out": 7, "let_go": 1000}, 50, "1,007 lost"),
        (3, {"let_go": 5}, 38, "G follows"),
    ],
)
def test_the_foot_tells_what_is_missing(below, lost, width, words):
    view = replace(dp_run(), output=(printed(0, (1, "a"), **lost),))
    told = foot_line(view, Choice(), below, width, palette()).plain
    assert words in told
    assert cell_len(told) == width


def body(app):
    """The lines of output, without the scroll bar."""
    return [text[:-4].rstrip() for text in screen_text(app).splitlines()[3:-2]]


def output_of(app):
    return app.query_one(Output)


async def test_it_follows_until_it_is_scrolled_up_and_says_so(dashboard):
    async with dashboard(snapshot(with_output(ddp_run(), fails=None)), size=(80, 24)) as (
        app,
        pilot,
    ):
        await pilot.press("9")
        assert "epoch 3:  61%" in screen_text(app)
        assert "following the newest line" in screen_text(app)
        await newest(app, pilot, with_output(ddp_run(), lines=20, fails=None))
        assert "step 119/200" in screen_text(app)
        await pilot.press("k", "k")
        assert not output_of(app).following
        assert "held, 2 more below: G follows again" in screen_text(app)
        before = body(app)
        await newest(app, pilot, with_output(ddp_run(), lines=30, fails=None))
        assert body(app) == before
        assert "held, 42 more below" in screen_text(app)
        for key in ("G", "f", "end"):
            await pilot.press(key)
            assert output_of(app).following
            assert "step 129/200" in screen_text(app)
            await pilot.press("g")
            assert not output_of(app).following
            assert "step 100/200" in screen_text(app)
        await pilot.press(*["pagedown"] * 9)
        assert output_of(app).following


async def test_lines_are_sorted_and_broken_anew_only_when_there_are_new_ones(
    dashboard, monkeypatch
):
    made = []
    monkeypatch.setattr(output_view, "entries", lambda *a: made.append(1) or entries(*a))
    view = with_output(ddp_run())
    async with dashboard(snapshot(view)) as (app, pilot):
        await pilot.press("9")
        first = len(made)
        await newest(app, pilot, replace(view, elapsed_s=1.0))
        assert len(made) == first
        await newest(app, pilot, with_output(ddp_run(), lines=13))
        assert len(made) > first


async def test_what_is_read_stays_where_it_is_while_older_lines_go(dashboard):
    view = with_output(ddp_run(), lines=60, fails=None)
    async with dashboard(snapshot(view), size=(80, 24)) as (app, pilot):
        await pilot.press("9", "pageup")
        before = body(app)
        rest = tuple(replace(each, lines=each.lines[20:], let_go=20) for each in view.output)
        await newest(app, pilot, replace(view, output=rest))
        assert body(app) == before
        assert "80 older not kept" in screen_text(app)


async def test_the_wheel_scrolls_and_the_end_follows(dashboard):
    async with dashboard(snapshot(with_output(ddp_run())), size=(80, 24)) as (app, pilot):
        await pilot.press("9")
        await pilot._post_mouse_events([events.MouseScrollUp], Output)
        await pilot.pause()
        assert not output_of(app).following
        for _ in range(3):
            await pilot._post_mouse_events([events.MouseScrollDown], Output)
        await pilot.pause()
        assert output_of(app).following


async def test_arrows_and_clicks_show_one_rank_or_all_and_t_stderr_only(dashboard):
    async with dashboard(snapshot(with_output(ddp_run())), size=(100, 30)) as (app, pilot):
        await pilot.press("9")
        seen = []
        for key in ("right", "right", "left", "left", "left", "right"):
            await pilot.press(key)
            seen.append(output_of(app).rank)
        assert seen == [0, 1, 0, None, 3, None]
        lines = screen_text(app).splitlines()
        row = next(i for i, text in enumerate(lines) if "r2 !   File" in text)
        await pilot.click(offset=(20, row))
        assert output_of(app).rank == 2
        text = screen_text(app)
        assert "r2 only" in text
        assert "r1  " not in text
        await pilot.click(offset=(20, row))
        assert output_of(app).rank is None
        assert "all 4 ranks" in screen_text(app)
        await pilot.press("t")
        text = screen_text(app)
        assert "stderr only" in text
        assert "UserWarning" in text
        assert "step 1" not in text
        await pilot.press("t")
        assert "step 1" in screen_text(app)


async def test_the_filter_narrows_the_lines(dashboard):
    async with dashboard(snapshot(with_output(ddp_run()))) as (app, pilot):
        await pilot.press("9", "slash", *"userwarning", "enter")
        text = screen_text(app)
        assert text.count("UserWarning") == 4
        assert "4 lines" in text
        assert "only “userwarning”" in text
        await pilot.press("right")
        assert screen_text(app).count("UserWarning") == 1
        await pilot.press("slash", "end", *"xyz", "enter")
        text = screen_text(app)
        assert "rank 0 has not printed a line with “userwarningxyz”; esc clears" in text
        await pilot.press("escape")
        assert not app.query_one(Input).has_class("open")
        assert "step 1" in screen_text(app)


async def test_a_screen_drawn_before_it_is_laid_out_anew(dashboard, monkeypatch):
    async with dashboard(snapshot(with_output(ddp_run())), size=(80, 24)) as (app, pilot):
        await pilot.press("9")
        monkeypatch.setattr(output_of(app), "relayout", lambda: None)
        await resized(app, pilot, 200, 60)
        assert "Tried to allocate" in screen_text(app)


async def test_y_copies_the_lines_whole(dashboard):
    async with dashboard(snapshot(with_output(ddp_run())), size=(80, 24)) as (app, pilot):
        await pilot.press("9", "right", "right", "right", "t", "y")
        lines = app.clipboard.splitlines()
        assert lines[0] == "10:00:02 r2 ! [rank2] UserWarning: lr_scheduler.step()"
        assert lines[-1].endswith("214.56 MiB is free.")
        assert len(lines) == 7


async def test_another_run_is_seen_from_its_end_and_with_all_ranks(dashboard):
    two = snapshot(with_output(ddp_run()), with_output(dp_run(state="finished"), fails=None))
    async with dashboard(two, size=(80, 24)) as (app, pilot):
        await pilot.press("9", "right", "g", "p")
        assert app.frame.run_id == "run-dp"
        assert (output_of(app).rank, output_of(app).following) == (None, True)
        assert "the only rank" in screen_text(app)


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (ddp_run(), ("is not captured", "dpwatch run -- torchrun")),
        (replace(ddp_run(), tells_output=4), ("No output yet",)),
        (replace(ddp_run(state="finished"), tells_output=4), ("No output",)),
        (starting_run(), ("is not captured",)),
    ],
)
async def test_it_says_why_there_is_nothing(dashboard, view, words):
    async with dashboard(snapshot(view), size=(80, 24)) as (app, pilot):
        await pilot.press("9")
        await pilot.pause()
        text = screen_text(app)
        assert all(word in text for word in words)


async def test_hostile_lines_are_only_text(dashboard):
    async with dashboard(snapshot(hostile_output()), size=(80, 24)) as (app, pilot):
        await pilot.press("9", "g")
        for _ in range(6):
            text = screen_text(app)
            assert not any(ord(c) < 32 and c != "\n" for c in text)
            assert not set(text) & set("\u202e\u2066\ud800")
            await pilot.press("pagedown")
        await pilot.press("g")
        assert "[bold]red[/bold] [@click=app.quit]x[/]" in screen_text(app)
        await pilot.press("y")
        assert not any(ord(c) < 32 and c != "\n" for c in app.clipboard)


@pytest.mark.snapshot
@pytest.mark.parametrize("size", [(120, 35)], ids=["120x35"])
@pytest.mark.parametrize(
    ("scene", "keys"),
    [
        (lambda: with_output(ddp_run()), []),
        (
            lambda: with_output(ddp_run(), left_out=37, let_go=1203),
            ["slash", *"loss", "enter", "pageup"],
        ),
        (dp_run, []),
        (hostile_output, []),
    ],
    ids=["all", "read", "none", "hostile"],
)
def test_drawn(snap_compare, scene, keys, size):
    now = snapshot(scene())
    app = DashboardApp(QueueSource(now))

    async def act(pilot):
        await shown(app, pilot, lambda: app.snapshot == now)
        await pilot.press("9", *keys)
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=act)
