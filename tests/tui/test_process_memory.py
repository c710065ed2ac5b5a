"""A run whose memory is its processes' resident size: nothing looks like a step's or a device's."""

from __future__ import annotations

from msgspec.structs import replace

from dpwatch.run.model import snapshot as s
from dpwatch.tui.draw.palette import palette
from dpwatch.tui.views.rank_detail import rank_lines

from .conftest import screen_text
from .scenes import ddp_run, snapshot

MIB = 1 << 20
USE = s.MemoryUse(
    current_bytes=390 * MIB, peak_bytes=400 * MIB, source="rss", params=2 * MIB,
    optimizer=4 * MIB, buffers=2 * MIB, at_step_end=s.Categories(grads=2 * MIB),
    peak_of="process", heap_bytes=90 * MIB, activations_estimate=5 * MIB,
    activations_error=MIB,
)  # fmt: skip


def resident_run(**changes):
    view = ddp_run()
    ranks = [replace(rank, memory=replace(USE, **changes)) for rank in view.run.ranks]
    return replace(view, run=replace(view.run, ranks=ranks, balance=s.Balance()))


async def test_the_memory_view_says_whose_the_peaks_are(dashboard):
    async with dashboard(snapshot(resident_run()), size=(120, 35)) as (app, pilot):
        await pilot.press("3")
        text = screen_text(app)
    assert "the first process has peaked at 400 MiB" in text
    assert "by rss: whole processes, since they began" in text
    assert "~A 5.00 MiB" in text


def test_a_ranks_page_tells_estimates_apart(dashboard):
    text = "\n".join(line.plain for line in rank_lines(resident_run(), 0, 120, palette(dark=True)))
    assert "Memory at the process's peak" in text
    assert "step's peak" not in text
    assert "~5.00 MiB, error 1.00 MiB" in text
    assert "90.0 MiB" in text
    unbounded = resident_run(activations_error=None)
    text = "\n".join(line.plain for line in rank_lines(unbounded, 0, 120, palette(dark=True)))
    assert "~5.00 MiB" in text
    assert "error" not in text


async def test_the_overview_balances_nothing(dashboard):
    async with dashboard(snapshot(resident_run()), size=(160, 45)) as (app, _):
        text = screen_text(app)
    assert "the process's peak (others: their median)" in text
    assert "memory peak" not in text
