from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwatch.tui.draw.bars import apportion, gauge, stacked
from dpwatch.tui.draw.palette import MEMORY_KINDS, PHASE_KINDS, palette

from .conftest import calm

COLOR, MONO = palette(), palette(mono=True)
amounts = st.lists(st.floats(min_value=0, max_value=1e12), min_size=1, max_size=8)


def colors(bar):
    """Eighths of a cell in each colour."""
    found: dict[str, int] = {}
    for text, style in bar.pieces:
        for char in text:
            part = " ▏▎▍▌▋▊▉█".find(char) if char in "▏▎▍▌▋▊▉█" else 0
            for style_color, eighths in (
                (style.color, part),
                (style.bgcolor, 8 - part),
            ):
                if style_color is not None and eighths:
                    found[style_color.name] = found.get(style_color.name, 0) + eighths
    return found


@calm
@given(amounts, st.integers(min_value=0, max_value=400))
def test_parts_sum_to_the_width(values, units):
    parts = apportion(values, sum(values), units)
    assert sum(parts) == (units if sum(values) > 0 else 0)
    assert all(part >= 0 for part in parts)


@calm
@given(amounts, st.integers(min_value=1, max_value=400))
def test_no_part_is_a_unit_off_its_share(values, units):
    total = sum(values)
    for value, part in zip(values, apportion(values, total, units), strict=True):
        assert abs(part - (value / total * units if total else 0)) < 1 + 1e-6


def test_the_largest_remainder_gets_the_unit():
    assert apportion([1, 1, 1], 3, 10) == [4, 3, 3]
    assert apportion([0.5, 0.3, 0.2], 1, 4) == [2, 1, 1]


def test_less_than_the_whole_leaves_the_rest_empty_and_more_fills_it():
    assert apportion([25], 100, 8) == [2]
    assert apportion([150, 50], 100, 8) == [6, 2]
    assert apportion([-5, 10], 10, 4) == [0, 4]


@calm
@given(
    st.dictionaries(st.sampled_from(list(MEMORY_KINDS)), st.floats(min_value=0, max_value=1e11)),
    st.integers(min_value=0, max_value=120),
    st.sampled_from([COLOR, MONO]),
    st.one_of(st.none(), st.floats(min_value=0, max_value=1e11)),
)
def test_a_bar_has_exactly_its_width(values, width, colors_, total):
    assert stacked(values, MEMORY_KINDS, width, colors_, total=total).cell_len == width


def test_a_bar_s_colours_are_in_proportion_to_an_eighth_of_a_cell():
    bar = stacked({"forward": 3.0, "backward": 5.0}, PHASE_KINDS, 10, COLOR, total=16.0)
    found = colors(bar)
    assert found[PHASE_KINDS["forward"].color] == 15
    assert found[PHASE_KINDS["backward"].color] == 25
    assert found[COLOR.track] == 40


def test_segments_carry_their_letter_where_wide_enough():
    bar = stacked({"params": 10.0, "grads": 1.0}, MEMORY_KINDS, 11, COLOR)
    assert "P" in bar.plain
    assert "G" not in bar.plain


def test_without_colour_every_cell_is_a_letter():
    bar = stacked({"params": 2.0, "grads": 1.0}, MEMORY_KINDS, 8, MONO, total=4.0)
    assert bar.plain == "PPPPGG··"


def test_unknown_is_dots_and_not_an_empty_bar():
    assert stacked({"forward": None}, PHASE_KINDS, 5, COLOR).plain == "·····"
    assert gauge(None, 4, COLOR, COLOR.accent).plain == "····"


@calm
@given(st.floats(min_value=-1, max_value=3), st.integers(min_value=0, max_value=60))
def test_a_gauge_has_exactly_its_width(part, width):
    assert gauge(part, width, COLOR, COLOR.accent).cell_len == width


@pytest.mark.parametrize("kinds", [PHASE_KINDS, MEMORY_KINDS])
def test_letters_and_colours_tell_the_kinds_of_one_bar_apart(kinds):
    assert len({kind.letter for kind in kinds.values()}) == len(kinds)
    assert len({kind.color for kind in kinds.values()}) == len(kinds)
