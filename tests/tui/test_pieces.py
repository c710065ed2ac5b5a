"""A line of pieces looks like the `rich.text.Text` that the same calls make."""

from __future__ import annotations

import random

import pytest
from rich import text as rich
from rich.console import Console
from rich.style import Style

from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, line

STYLES = [Style(color="red"), Style(bold=True), Style(meta={"run": "x"}), Style.null()]
UNDERLINE = Style(underline=True)


@pytest.fixture(params=range(20))
def both(request):
    """A line, and Rich's made of the same parts; some of them are lines in lines."""
    dice = random.Random(request.param)

    def parts(depth):
        for _ in range(dice.randint(0, 5)):
            if depth and dice.random() < 0.3:
                yield list(parts(depth - 1))
            else:
                yield "".join(dice.choices("ab █漢é\a", k=dice.randint(0, 6))), dice.choice(STYLES)

    def made(some):
        return line(*(each if isinstance(each, tuple) else made(each) for each in some))

    def appended(some, onto):
        for each in some:
            if isinstance(each, tuple):
                onto.append(*each)
            else:
                appended(each, onto)
        return onto

    some = list(parts(2))
    return made(some), appended(some, rich.Text(end=""))


def cells(text):
    if isinstance(text, Text):
        return [(char, style) for piece, style in text.pieces for char in piece]
    # Alone, `render` leaves out a style without a span.
    styled = [(s.text, s.style or Style.null()) for s in text.render(Console())]
    return [(char, style) for piece, style in styled for char in piece]


CHANGES = {
    "nothing": lambda text: None,
    "append": lambda text: text.append("ta\bil", STYLES[0]),
    "append a text": lambda text: text.append_text(type(text)("tail", STYLES[1])),
    "stylize": lambda text: text.stylize(UNDERLINE, 1, 3),
    "stylize to the end": lambda text: text.stylize(UNDERLINE, 2),
    "stylize what is not there": lambda text: text.stylize(UNDERLINE, 90, 95),
    "stylize before": lambda text: text.stylize_before(UNDERLINE),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_it_is_changed_as_richs_is(both, change):
    for text in both:
        change(text)
    ours, richs = both
    assert ours.plain == richs.plain
    assert (len(ours), ours.cell_len, bool(ours)) == (len(richs), richs.cell_len, bool(richs))
    assert cells(ours) == cells(richs)


def test_it_is_cut_as_richs_is(both):
    ours, richs = both
    ours.truncate(5)
    richs.truncate(5, overflow="ellipsis")
    assert ours.plain == richs.plain
    shown = len(ours.plain.rstrip("…"))  # Rich may draw the sign in the style of what follows
    assert cells(ours)[:shown] == cells(richs)[:shown]


def test_a_copy_is_its_own(both):
    ours, richs = both
    copy = ours.copy()
    copy.append("tail")
    assert ours.plain == richs.plain
    assert cells(ours) == cells(richs)


def test_lines_are_equal_by_what_they_are_made_of(both):
    ours, _ = both
    again = line(ours)
    assert ours == again
    again.append("tail", STYLES[1])
    assert ours != again


def test_a_line_as_wide_as_wanted_can_be_added_to_without_the_one_it_came_from():
    first = line(("ab", STYLES[0]))
    second = fitted(first, 2)
    second.append("c")
    assert first.plain == "ab"
