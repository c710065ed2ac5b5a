"""Who sends what to whom: the tables, the bars, the diagram."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dpwatch.run.model.snapshot import IssuerStats
from dpwatch.tui.draw.palette import palette
from dpwatch.tui.snapshots.frame import Frame
from dpwatch.tui.views.communication.panel import traffic_lines

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
    assert told(view).splitlines()[3].split()[-5:] == ["–"] * 5


def test_what_communication_costs_stands_first():
    view = ddp_run()
    cost = "Compute waits up to 6.20 ms per step for communication: 8% of rank 0's step."
    assert told(view, 79).splitlines()[0].rstrip() == cost
    assert "Compute waits" not in told(dp_run())  # not known of it
    hidden = replace(view.run.ranks[0].comm_ms, exposed=0.0)
    ranks = [replace(rank, comm_ms=hidden) for rank in view.run.ranks]
    view = replace(view, run=replace(view.run, ranks=ranks))
    assert told(view).startswith("Compute does not wait for communication.")


def test_copies_are_a_star_around_device_0_and_its_traffic_stands_out():
    text = told(dp_run())
    assert "vgpu:0 sends 37.3 MiB and receives 37.3 MiB per step" in text
    assert "device 0 carries 3.00× the others' median of 24.9 MiB" in text


def issuer(step, **other):
    """What a framework issues once a step, last in this one."""
    fields = {
        "framework": "Lightning", "function": "lightning.loops._broadcast_sigterm_tensor",
        "purpose": "SIGTERM flag", "op": "broadcast", "group": "default", "ranks": 4,
        "dtype": "int64", "calls": step + 1, "bytes": 8 * step + 8, "count_per_step": 1.0,
        "bytes_per_step": 8, "first_step": 0, "last_step": step,
    }  # fmt: skip
    return IssuerStats(**{**fields, **other})


@pytest.mark.parametrize("width", [79, 119, 199])
def test_what_frameworks_issue_stands_below_the_collectives(width):
    view = ddp_run()
    found = [
        issuer(149),
        issuer(0, purpose="set-up"),
        issuer(149, framework="accelerate", function="accelerate.ops.gather", purpose=""),
    ]
    text = told(replace(view, run=replace(view.run, issuers=found)), width)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith("Issued by frameworks") for line in lines)
    assert any("Lightning: SIGTERM flag 1.00 8 B int64 broadcast ×4" in line for line in lines)
    assert any("accelerate: gather 1.00 8 B" in line for line in lines)
    assert "set-up" not in text  # long ago
    assert "Issued by frameworks" not in told(view, width)


def test_of_a_young_run_the_start_is_shown_and_of_many_issuers_the_heaviest():
    view = ddp_run(steps=1)
    found = [issuer(0, purpose=f"thing {n}", bytes_per_step=n) for n in range(20)]
    text = told(replace(view, run=replace(view.run, issuers=found)))
    assert "thing 19" in text
    assert "thing 7" not in text
    assert "and 8 more" in text


def test_of_many_devices_the_heaviest_are_shown_with_device_0():
    text = told(cluster_run())
    assert "device 0 and the 15 heaviest of 1023 others" in text
    assert len(text.splitlines()) < 60


def test_a_run_that_sends_nothing_says_why():
    assert "No step yet" in told(starting_run())
    assert "no communication" in told(scheme_run("single"))


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
