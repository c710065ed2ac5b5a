"""Who sends what to whom: the tables, the bars, the diagram."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dpwatch.tui.frame import Frame
from dpwatch.tui.palette import palette
from dpwatch.tui.traffic import traffic_lines

from .conftest import screen_text
from .scenes import cluster_run, ddp_run, dp_run, hostile_run, snapshot, starting_run
from .schemes import NAMES, scheme_run


def told(view, width=120):
    frame = Frame(snapshot=snapshot(view), run_id=view.run.run_id)
    return "\n".join(each.plain for each in traffic_lines(frame, width, palette()))


@pytest.mark.parametrize("width", [79, 119, 199])
def test_a_collective_shows_every_figure_whatever_the_width(width):
    text = " ".join(told(ddp_run(), width).split())
    for words in ("2.00", "12.3 MiB", "9.40 ms", "14.2 ms", "5.40 GB/s", "8.20 GB/s", "6.20 ms",
                  "rank 2 in 41%", "3.10 ms", "each sends 18.5 MiB"):  # fmt: skip
        assert words in text
    assert "…" not in text


def test_unknown_figures_are_dashes():
    view = ddp_run()
    bare = replace(view.run.collectives[0], algbw_gbps=None, busbw_gbps=None, last_arrival=None,
                   exposed_ms_per_step=None)  # fmt: skip
    view = replace(view, run=replace(view.run, collectives=[bare]))
    assert told(view).splitlines()[2].split()[-5:] == ["–"] * 5


def test_copies_are_a_star_around_device_0_and_its_traffic_stands_out():
    text = told(dp_run())
    assert "vgpu:0 sends 37.3 MiB and receives 37.3 MiB a step" in text
    assert "device 0 carries 3.00× the others' median of 24.9 MiB" in text


def test_of_many_devices_the_heaviest_are_shown_with_device_0():
    text = told(cluster_run())
    assert "device 0 and the 15 heaviest of 1023 others" in text
    assert len(text.splitlines()) < 60


def test_a_run_that_sends_nothing_says_why():
    assert "No step yet" in told(starting_run())
    assert "nobody to talk to" in told(scheme_run("single"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [79, 119, 239])
def test_no_line_is_wider_than_the_screen(name, width):
    assert all(len(each) == width for each in told(scheme_run(name), width).splitlines())
    assert max(len(each) for each in told(hostile_run(), width).splitlines()) <= width


async def test_the_view_scrolls_by_keys(dashboard):
    async with dashboard(snapshot(ddp_run()), size=(80, 24)) as (app, pilot):
        await pilot.press("4")
        assert "Collectives" in screen_text(app)
        await pilot.press("G")
        await pilot.pause()
        assert "2. all-gather" in screen_text(app)
