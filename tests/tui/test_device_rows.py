"""The views with a bar a device: what threads do, and memory."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dpwatch.run.derive.comparison import on_core_share
from dpwatch.run.model import snapshot as s
from dpwatch.tui.views.gil import Threads
from dpwatch.tui.views.memory import Memory
from dpwatch.tui.views.panels import RankDetail

from .conftest import screen_text, shown
from .scenes import cluster_run, ddp_run, dp_run, hostile_run, snapshot, starting_run, with_lanes

VIEWS = [("6", Threads), ("3", Memory)]


def devices_of(app, kind):
    return [rank.device for rank in app.query_one(kind).rows]


def test_time_on_a_core_is_known_only_with_all_that_is_lost():
    rank = dp_run().run.ranks[0]
    assert on_core_share(rank) == pytest.approx(0.46)
    assert on_core_share(replace(rank, gil_wait=None)) is None


@pytest.mark.parametrize("size", [(80, 24), (120, 35), (240, 70)])
async def test_threads_show_every_share_with_its_figure(dashboard, size):
    async with dashboard(snapshot(dp_run()), size=size) as (app, pilot):
        await pilot.press("6", "j")
        text = screen_text(app)
        for words in (
            "highest: queue 24% vgpu:1",
            "GIL 13% vgpu:1",
            "27%     24%     13%     36%",
            "▸ vgpu:1  27% on a core, 24% in the queue, 13% at the GIL, 36% idle",
        ):
            assert words in text


@pytest.mark.parametrize("size", [(80, 24), (120, 35), (240, 70)])
async def test_memory_shows_device_0_beside_the_others(dashboard, size):
    async with dashboard(snapshot(dp_run()), size=size) as (app, pilot):
        await pilot.press("3")
        text = screen_text(app)
        assert "device 0 peaks at 56.2 MiB, the others' median 30.9 MiB (1.82×) · by ledger" in text
        assert "O 24.6 MiB" in text
        assert "Peak over the run" in text


async def test_a_full_bar_is_the_capacity_where_all_devices_have_one(dashboard):
    view = dp_run()
    ranks = [
        replace(rank, memory=replace(rank.memory, capacity_bytes=2**26)) for rank in view.run.ranks
    ]
    view = replace(view, run=replace(view.run, ranks=ranks))
    async with dashboard(snapshot(view), size=(80, 24)) as (app, pilot):
        await pilot.press("3")
        assert "a full bar is capacity" in screen_text(app)
        assert "56.2 MiB   64.0 MiB" in screen_text(app)


@pytest.mark.parametrize(("key", "kind"), VIEWS)
async def test_rows_are_sorted_and_turned_round(dashboard, key, kind):
    view = ddp_run()
    ranks = [
        replace(
            rank,
            idle=0.1 * (4 - index),
            memory=replace(rank.memory, peak_bytes=1000 * index),
        )
        for index, rank in enumerate(view.run.ranks)
    ]
    ranks[1] = s.Rank(rank=1, device="vgpu:1", host="box", pid=1, state="starting", steps=0,
                      dropped=0)  # fmt: skip
    view = replace(view, run=replace(view.run, ranks=ranks))
    async with dashboard(snapshot(view)) as (app, pilot):
        await pilot.press(key)
        assert devices_of(app, kind) == ["vgpu:0", "vgpu:1", "vgpu:2", "vgpu:3"]
        await pilot.press("r")
        assert devices_of(app, kind) == ["vgpu:3", "vgpu:2", "vgpu:1", "vgpu:0"]
        await pilot.press("full_stop")
        first = devices_of(app, kind)
        assert first[-1] == "vgpu:1"  # unknown: always last
        await pilot.press("r")
        assert devices_of(app, kind)[-1] == "vgpu:1"
        assert devices_of(app, kind)[0] == first[2]
        await pilot.press("comma")
        assert devices_of(app, kind) == ["vgpu:0", "vgpu:1", "vgpu:2", "vgpu:3"]
        for _ in range(len(kind.SORTS) + 1):
            await pilot.press("full_stop")
        assert "by rank ▲" in screen_text(app)


@pytest.mark.parametrize(("key", "kind"), VIEWS)
async def test_rows_are_filtered_opened_and_clicked(dashboard, key, kind):
    async with dashboard(snapshot(ddp_run())) as (app, pilot):
        await pilot.press(key, "slash", *"rank2")
        await pilot.pause()
        assert devices_of(app, kind) == ["vgpu:2"]
        assert "only “rank2”" in screen_text(app)
        await pilot.press("enter", "enter")
        assert app.query_one(RankDetail).key == (2, "vgpu:2")
        await pilot.press("escape", "escape")
        assert len(devices_of(app, kind)) == 4
        lines = screen_text(app).splitlines()
        row = next(i for i, text in enumerate(lines) if "3 vgpu:3" in text)
        await pilot.click(offset=(20, row))
        assert app.query_one(kind).chosen.rank == 3
        await pilot.click(offset=(20, row))
        assert app.query_one(RankDetail).key == (3, "vgpu:3")


@pytest.mark.parametrize(("key", "kind"), VIEWS)
async def test_a_filter_that_nothing_matches_says_so(dashboard, key, kind):
    async with dashboard(snapshot(ddp_run()), size=(80, 24)) as (app, pilot):
        await pilot.press(key, "slash", *"nothing")
        await pilot.pause()
        assert "no device matches “nothing”" in screen_text(app)
        await pilot.press("enter", "enter", "j", "r")
        assert app.panel == kind.__name__.lower()


@pytest.mark.parametrize(("key", "kind"), VIEWS)
async def test_a_thousand_rows_are_drawn_only_where_visible(dashboard, key, kind, monkeypatch):
    drawn = set()
    draw = kind.row_line

    def counted(self, view, rank, *rest):
        drawn.add(rank.rank)
        return draw(self, view, rank, *rest)

    monkeypatch.setattr(kind, "row_line", counted)
    async with dashboard(snapshot(cluster_run())) as (app, pilot):
        await pilot.press(key)
        assert 0 < len(drawn) <= app.size.height
        await pilot.press("G")
        await pilot.pause()
        assert "▸ 1023 cuda:7" in screen_text(app)
        assert len(drawn) <= 2 * app.size.height


@pytest.mark.parametrize("key", ["5", "6", "3"])
async def test_a_rank_that_is_lost_or_failed_is_marked(dashboard, key):
    view = ddp_run()
    ranks = list(view.run.ranks)
    ranks[1], ranks[2] = replace(ranks[1], state="lost"), replace(ranks[2], state="failed")
    view = with_lanes(replace(view, run=replace(view.run, ranks=ranks)))
    async with dashboard(snapshot(view)) as (app, pilot):
        await pilot.press(key)
        rows = [row for row in screen_text(app).splitlines() if " vgpu:" in row]
        signs = {row.split("vgpu:")[1][0]: row for row in rows}
        assert "?" in signs["1"]
        assert "✗" in signs["2"]
        assert not set("?✗") & set(signs["0"] + signs["3"])


@pytest.mark.parametrize(("key", "kind"), VIEWS)
@pytest.mark.parametrize("scene", [starting_run, hostile_run])
async def test_unknown_is_a_dash_and_names_are_only_text(dashboard, key, kind, scene):
    async with dashboard(snapshot(scene()), size=(80, 24)) as (app, pilot):
        await pilot.press(key, "j")
        text = screen_text(app)
        assert "–" in text
        assert not any(ord(c) < 32 and c != "\n" for c in text)
        app._source.queue.put(snapshot(dp_run()))
        await shown(app, pilot, lambda: app.frame.run_id == "run-dp")
        assert "vgpu:3" in screen_text(app)
