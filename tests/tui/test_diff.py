"""Only what differs is written, and then the screen is what it would be if all were."""

from __future__ import annotations

import io
import itertools
import random

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip

from dpwatch.tui.render import private_api
from dpwatch.tui.render.private_api import ChopsUpdate, LayoutUpdate
from dpwatch.tui.render.terminal_diff import ScreenBuffer
from tests.bench.terminal import Screen

WIDTH, HEIGHT = 24, 3
CONSOLE = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor")
STYLES = [None, Style(color="red"), Style(color="#102030", bgcolor="#405060"), Style(bold=True)]


def a_strip(dice, width):
    """A line of that many cells, in pieces of several styles."""
    segments, left = [], width
    while left:
        text = "".join(dice.choices("ab █▸漢é", k=dice.randint(1, 8)))
        while cell_len(text) > left:
            text = text[:-1]
        left -= cell_len(text := text or " ")
        segments.append(Segment(text + dice.choice(["", "", "\u0301"]), dice.choice(STYLES)))
    return Strip(segments, width)


def an_update(dice, strips):
    """Some lines, cut somewhere into pieces of which some are refreshed, and some have changed."""
    chops, ends, spans = [], [], []
    for y in range(HEIGHT):
        cuts = sorted({0, *dice.sample([6, 12, 18], dice.randint(0, 1)), WIDTH})
        pieces = list(itertools.pairwise(cuts))
        ends.append(cuts[1:])
        line = {}
        for x, end in pieces:
            known = strips.get((y, x, end))
            changed = known is None or dice.random() < 0.7
            line[x] = strips[y, x, end] = a_strip(dice, end - x) if changed else known
            spans.append((y, x, end))
        chops.append(line)
    return ChopsUpdate(chops, dice.sample(spans, dice.randint(1, len(spans))), ends)


def full(draw_from):
    return LayoutUpdate([[strip] for strip in draw_from], Region(0, 0, WIDTH, HEIGHT))


@pytest.mark.parametrize("seed", range(20))
def test_the_screen_is_what_it_would_be_if_all_were_written(seed):
    dice = random.Random(seed)
    plain, narrow = Screen(WIDTH, HEIGHT), Screen(WIDTH, HEIGHT)
    screen_buffer, strips = ScreenBuffer(), {}
    for turn in range(12):
        update = an_update(dice, strips)
        if turn in (0, 7):
            update = full([a_strip(dice, WIDTH) for _ in range(HEIGHT)])
        narrow.write(screen_buffer.narrowed(update).render_segments(CONSOLE))
        plain.write(update.render_segments(CONSOLE))
        assert narrow.cells == plain.cells


def line(*parts):
    return Strip([Segment(text, style) for text, style in parts])


def of_lines(*lines):
    return ChopsUpdate(
        [{0: each} for each in lines],
        [(y, 0, each.cell_length) for y, each in enumerate(lines)],
        [[each.cell_length] for each in lines],
    )


def written(screen_buffer, *lines):
    return screen_buffer.narrowed(of_lines(*lines)).render_segments(CONSOLE)


def test_a_number_that_has_changed_is_all_that_is_written():
    screen_buffer, red = ScreenBuffer(), STYLES[1]
    before = line(("step time  ", None), ("10.5 ms", red), ("  of the last steps", None))
    after = line(("step time  ", None), ("10.7 ms", red), ("  of the last steps", None))
    assert "step time" in written(screen_buffer, before)
    assert written(screen_buffer, after) == "\x1b[1;15H\x1b[0;31m7\x1b[0m"
    assert written(screen_buffer, after) == ""
    screen_buffer.forget()
    assert "step time" in written(screen_buffer, after)


def test_a_full_update_is_written_whole_and_remembered():
    screen_buffer = ScreenBuffer()
    one = [Strip([Segment("x" * WIDTH)]) for _ in range(HEIGHT)]
    for _ in range(2):
        assert "x" * WIDTH in screen_buffer.narrowed(full(one)).render_segments(CONSOLE)
    assert written(screen_buffer, one[0]) == ""


def test_textual_still_has_the_internals_that_are_used():
    assert private_api.missing() == [], (
        "this version of Textual has changed what dpwatch/tui/render/private_api.py uses. The "
        "dashboard still works without it and writes more. Adapt that module to the new "
        "internals, or pin `textual` in pyproject.toml below this version."
    )


async def test_without_these_internals_textual_writes_by_itself(dashboard, monkeypatch):
    monkeypatch.setattr(private_api, "WORKS", False)
    async with dashboard() as (app, pilot):
        await pilot.resize_terminal(100, 30)
        await pilot.pause()
        assert not app.screen_buffer._pieces


async def test_a_resize_forgets_what_stood_there(dashboard):
    async with dashboard() as (app, pilot):
        app.screen_buffer._pieces[0] = {}
        await pilot.resize_terminal(100, 30)
        await pilot.pause()
        assert not app.screen_buffer._pieces
