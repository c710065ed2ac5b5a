from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwatch import units
from dpwatch.run.model import ranks
from dpwatch.tui.draw import format as fmt

from .conftest import calm


@pytest.mark.parametrize("module", [fmt, ranks, units])
def test_the_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    "show",
    [fmt.size, fmt.count, fmt.rate, fmt.millis, fmt.share, fmt.ratio, fmt.clock, fmt.number],
)
def test_unknown_is_a_dash_and_zero_is_not(show):
    assert show(None) == "–"
    assert show(0).startswith("0")


@pytest.mark.parametrize(
    "show", [fmt.size, fmt.count, fmt.rate, fmt.millis, fmt.share, fmt.ratio, fmt.clock]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_known(show, value):
    assert show(value) == "–"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (1, "1 B"),
        (999, "999 B"),
        (1023, "0.999 KiB"),
        (1024, "1.00 KiB"),
        (1_048_575, "1.00 MiB"),
        (1_048_064, "1.00 MiB"),
        (32_400_000, "30.9 MiB"),
        (80 * 2**30, "80.0 GiB"),
        (1000 * 2**20, "0.977 GiB"),
        (2**80, "1048576 EiB"),
    ],
)
def test_size(nbytes, text):
    assert fmt.size(nbytes) == text


@pytest.mark.parametrize(
    ("value_ms", "text"),
    [
        (0.0998, "99.8 µs"),
        (0.5, "0.500 ms"),
        (9.996, "10.0 ms"),
        (999.4, "999 ms"),
        (999.6, "1.00 s"),
        (119_000, "119 s"),
        (120_000, "2.00 min"),
    ],
)
def test_millis(value_ms, text):
    assert fmt.millis(value_ms) == text


def test_a_loss_that_is_not_a_number_is_shown_as_it_was_measured():
    assert fmt.number(math.nan) == "nan"
    assert fmt.number(math.inf) == "inf"
    assert fmt.number(3.5e-9) == "3.500e-09"


@calm
@given(st.floats(min_value=1e-3, max_value=1e12))
def test_millis_and_sizes_are_true_to_three_figures(value):
    units = {"µs": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4}
    figure, unit = fmt.millis(value).split()
    assert float(figure) * units[unit] == pytest.approx(value, rel=6e-3)
    names = ("B", "KiB", "MiB", "GiB", "TiB")
    figure, unit = fmt.size(value).split()
    assert float(figure) * 1024 ** names.index(unit) == pytest.approx(value, rel=6e-3, abs=0.5)


@calm
@given(st.floats(min_value=0, max_value=1e15))
def test_figures_fit_the_table_s_columns(value):
    assert len(fmt.size(value)) <= 9
    assert len(fmt.millis(min(value, 1e8))) <= 9
    assert len(fmt.share(min(value, 1.0))) <= 5
