"""Curves over the number of devices."""

from hypothesis import given
from hypothesis import strategies as st

from dpwatch.tui.draw.plot import apart
from dpwatch.tui.views.compare.sweep_chart import lines

from .conftest import calm

DP = {1: 0.0, 2: 10.0, 4: 30.0, 8: 70.0}
DDP = {1: 0.0, 2: 20.0, 4: 30.0, 8: 35.0}


def cell(rows, glyph):
    """Where a curve's points are drawn: line and column, its label apart."""
    found = [
        (y, x)
        for y, row in enumerate(rows)
        for x, c in enumerate(row[: row.find(f"{glyph} d") if f"{glyph} d" in row else None])
        if c == glyph
    ]
    return sorted(found, key=lambda at: at[1])


def test_a_line_that_grows_with_n_is_straight_and_ends_at_the_top():
    rows = lines({"dp": DP}, 60, 15, label=lambda v: f"{v:.0f} B")
    points = cell(rows, "●")
    assert len(points) == 4
    (y1, x1), _, (y4, x4), (y8, x8) = points
    assert (y1, y8) == (13, 0)
    assert abs((y4 - y8) / (x8 - x4) - (y1 - y4) / (x4 - x1)) < 0.06
    assert rows[0].endswith("● dp 70 B")
    assert rows[0].startswith("70 B ┤")
    assert rows[13].startswith(" 0 B ┤")
    assert rows[14].split() == ["1", "2", "4", "8", "devices"]


def test_curves_have_a_glyph_and_a_label_each():
    rows = lines({"dp": DP, "ddp": DDP}, 60, 12, label=lambda v: f"{v:.0f} B")
    text = "\n".join(rows)
    assert "● dp 70 B" in text
    assert "■ ddp 35 B" in text


def test_unknown_values_are_left_out():
    assert len(cell(lines({"dp": {1: None, 2: 1.0, 4: 2.0}}, 60, 8), "●")) == 2
    assert lines({"dp": {1: None}}, 60, 8) == ["nothing measured yet"]
    assert lines({}, 60, 8) == ["nothing measured yet"]


values = st.dictionaries(
    st.integers(1, 64), st.none() | st.floats(0, 1e15, allow_nan=False), max_size=6
)


@calm
@given(st.dictionaries(st.text("abc", min_size=1, max_size=8), values, max_size=13),
       st.integers(50, 160), st.integers(3, 30))  # fmt: skip
def test_any_sweep_fits(series, width, height):
    rows = lines(series, width, height)
    assert all(len(row) <= width for row in rows)
    assert len(rows) <= max(height, 14)


@calm
@given(st.lists(st.integers(0, 20), max_size=30), st.integers(1, 21))
def test_labels_get_rows_of_their_own(wanted, height):
    rows = apart([min(row, height - 1) for row in wanted], height)
    given_rows = [row for row in rows if row is not None]
    assert len(set(given_rows)) == len(given_rows) == min(len(wanted), height)
    assert all(0 <= row < height for row in given_rows)
