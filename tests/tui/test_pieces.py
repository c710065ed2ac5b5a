"""A line of pieces is the `Text` that Rich's own methods would make."""

from __future__ import annotations

import random

import pytest
from rich.console import Console
from rich.style import Style
from rich.text import Text

from dpwatch.tui.draw.styled_line import pieces_of
from dpwatch.tui.draw.text import fitted, line

STYLES = [Style(color="red"), Style(bold=True), Style(meta={"run": "x"}), Style.null()]


@pytest.fixture(params=range(20))
def both(request):
    """A line, and the same appended piece by piece; some of it lines in lines."""
    dice = random.Random(request.param)

    def parts(depth):
        for _ in range(dice.randint(0, 5)):
            if depth and dice.random() < 0.3:
                yield list(parts(depth - 1))
            else:
                yield "".join(dice.choices("ab █漢é", k=dice.randint(0, 6))), dice.choice(STYLES)

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
    return made(some), appended(some, Text(end=""))


def cells(text):
    styled = [(s.text, s.style or Style.null()) for s in text.render(Console())]
    return [(char, style) for piece, style in styled for char in piece]


CHANGES = {
    "nothing": lambda text: None,
    "append": lambda text: text.append("tail", STYLES[0]),
    "append a text": lambda text: text.append_text(Text("tail", style="bold")),
    "truncate": lambda text: text.truncate(5, overflow="ellipsis"),
    "stylize": lambda text: text.stylize("underline", 1, 3),
    "stylize before": lambda text: text.stylize_before("underline"),
    "plain": lambda text: setattr(text, "plain", "another"),
    "right crop": lambda text: len(text) > 2 and text.right_crop(2),
    "pad": lambda text: text.pad_right(3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_it_is_changed_as_a_text_is(both, change):
    for text in both:
        change(text)
    ours, richs = both
    assert ours.plain == richs.plain
    assert (len(ours), ours.cell_len, bool(ours)) == (len(richs), richs.cell_len, bool(richs))
    assert cells(ours) == cells(richs)
    assert [c for piece, _ in pieces_of(ours) for c in piece] == list(richs.plain)


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


def test_spans_that_overlap_are_laid_over_each_other():
    text = Text("abcd", style=STYLES[1], end="")
    text.stylize(STYLES[0], 1, 3)
    text.stylize("underline", 2, 4)
    found = [(char, style) for piece, style in pieces_of(text) for char in piece]
    assert found == cells(text)
    assert line(text).plain == "abcd"
