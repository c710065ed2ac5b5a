"""What is drawn in one go is what Rich and Textual would draw step by step."""

from __future__ import annotations

import random

import pytest
from rich import text as rich
from rich.style import Style
from textual.strip import Strip

from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import line
from dpwatch.tui.render.strips import strip_of
from dpwatch.tui.views.panels import Header
from dpwatch.tui.widgets.rank_table import RankTable

from .scenes import dp_run, snapshot

STYLES = [
    Style(color="red"),
    Style(bold=True, bgcolor="#102030"),
    Style(meta={"run": "x"}),
    Style.null(),
]


def step_by_step(text, width, widget, under):
    whole = rich.Text.assemble(*text.pieces, end="")
    strip = Strip(whole.render(widget.app.console)).adjust_cell_length(width)
    if under is not None:
        strip = strip.apply_style(under)
    return strip.apply_style(widget.rich_style)


def cells(strip):
    return [(char, segment.style) for segment in strip for char in segment.text]


@pytest.fixture
def lines():
    dice = random.Random(7)

    def some():
        parts = ["".join(dice.choices("ab █漢é", k=dice.randint(0, 6))) for _ in range(5)]
        made = line(*((part, dice.choice(STYLES)) for part in parts))
        if dice.random() < 0.3:
            made.append("tail")
        if dice.random() < 0.3:
            made.stylize_before(Style(bold=True))
        if dice.random() < 0.3:
            made.stylize(Style(underline=True), 1, 5)
        return made

    return [Text(), Text("plain", Style(color="red")), *(some() for _ in range(60))]


async def test_it_is_what_rich_and_textual_draw_step_by_step(dashboard, lines):
    async with dashboard(snapshot(dp_run())) as (app, _):
        for theme in ("dpwatch-dark", "dpwatch-light"):
            app.theme = theme
            for widget in (app.query_one(Header), app.query_one(RankTable)):
                ground = widget.visual_style.rich_style
                assert ground == widget.rich_style
                for text in lines:
                    for width in (8, 30, 60):
                        for under in (None, Style(bgcolor="#243447", bold=False)):
                            drawn = strip_of(text, width, ground, under=under)
                            assert drawn.cell_length == width
                            wanted = step_by_step(text, width, widget, under)
                            assert cells(drawn) == cells(wanted)
