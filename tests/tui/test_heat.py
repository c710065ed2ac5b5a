"""All ranks on one screen: where their cells lie, what they show, keys and mouse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dpwatch.run.derive.distribution import spread
from dpwatch.run.model import snapshot as s
from dpwatch.tui.draw.metrics import BY_TITLE, METRICS, by_metric
from dpwatch.tui.views.panels import RankDetail
from dpwatch.tui.views.ranks import widget as heat_view
from dpwatch.tui.views.ranks.cells import RAMP, TITLE, HeatScale
from dpwatch.tui.views.ranks.layout import FIGURE_CELL, by_host, layout, short_names
from dpwatch.tui.views.ranks.widget import Heatmap

from .conftest import calm, screen_text, shown
from .scenes import cluster_run, ddp_run, dp_run, hostile_run, snapshot, starting_run
from .states import hung


def rank(number: int, host: str = "box", **more) -> s.Rank:
    return s.Rank(rank=number, device=f"cuda:{number}", host=host, pid=1, state="running",
                  steps=1, dropped=0, **more)  # fmt: skip


@calm
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    width=st.integers(40, 240),
    height=st.integers(1, 60),
)
def test_every_rank_has_a_cell_of_its_own_within_the_width(sizes, width, height):
    hosts = [f"host-{i}" for i, size in enumerate(sizes) for _ in range(size)]
    ranks = by_host([rank(number, host) for number, host in enumerate(hosts)])
    found = layout(ranks, width, height)
    cells = {(row, x + i) for row, x in found.places for i in range(found.cell)}
    assert len(cells) == len(ranks) * found.cell
    assert max(x for _, x in cells) <= width
    for index, (row, x) in enumerate(found.places):
        assert index in found.rows[row]
        assert found.at(row, x) == index


def test_hosts_lie_together_whatever_the_ranks_order():
    ranks = by_host([rank(0, "a"), rank(1, "b"), rank(2, "a"), rank(3, "b")])
    assert [each.rank for each in ranks] == [0, 2, 1, 3]


def test_hosts_are_called_by_what_tells_them_apart():
    names = short_names(["gpu-cluster-west-0017.example.org", "gpu-cluster-west-0018.example.org"])
    assert list(names.values()) == ["…r-west-0017", "…r-west-0018"]
    assert short_names(["box.local"]) == {"box.local": "box.local"}


def test_small_differences_do_not_fill_the_scale():
    noise = spread(_run(100.0, 101.0), lambda r: r.step_ms.p50)
    step, gil = METRICS[0], BY_TITLE["GIL"]
    scale = HeatScale.of(noise, step)
    assert scale.level(100.0) == scale.level(101.0) == 0
    assert scale.level(110.0) == len(RAMP) // 2
    assert HeatScale.of(spread(_run(50.0, 100.0), step.value), step).level(50.0) == 0
    low = spread(_run(0.0, 0.004), step.value)
    assert HeatScale.of(low, gil).level(0.004) == 0  # both are shown as 0%
    assert scale.level(None) is None
    assert spread(_run(None, float("nan")), lambda r: r.step_ms.p50) is None


def _run(*step_ms):
    view = ddp_run(ranks=len(step_ms))
    rows = [rank(i, step_ms=s.StepTime(p50=value)) for i, value in enumerate(step_ms)]
    return replace(view.run, ranks=rows)


def test_unknown_figures_come_last_whichever_way_round():
    rows = _run(3.0, None, 5.0).ranks
    for reverse, order in ((False, [2, 0, 1]), (True, [0, 2, 1])):
        assert [r.rank for r in by_metric(rows, METRICS[0], reverse=reverse)] == order


async def test_a_thousand_ranks_fit_on_one_screen_with_their_hosts(dashboard):
    async with dashboard(snapshot(cluster_run()), size=(120, 35)) as (app, pilot):
        await pilot.press("2")
        text = screen_text(app)
        for name in ("node-000", "node-127", "1024 ranks by median step time", "120 ms"):
            assert name in text
        cells = "".join(text.splitlines()[5:-3])
        assert sum(cells.count(glyph) for glyph in RAMP) == 1024 - 3
        assert cells.count("✗") == cells.count("?") == cells.count("·") == 1
        assert app.query_one(Heatmap).max_scroll_y == 0


async def test_four_thousand_scroll_and_are_drawn_only_where_visible(dashboard, monkeypatch):
    drawn = set()
    draw = heat_view.heat_row

    def counted(ranks, where, row, *rest):
        drawn.add(row)
        return draw(ranks, where, row, *rest)

    monkeypatch.setattr(heat_view, "heat_row", counted)
    async with dashboard(snapshot(cluster_run(ranks=4096)), size=(80, 24)) as (app, pilot):
        await pilot.press("2")
        assert 0 < len(drawn) <= app.size.height
        await pilot.press("G")
        await pilot.pause()
        assert "rank 4095" in screen_text(app)
        assert "node-511" in screen_text(app)
        assert len(drawn) <= 2 * app.size.height
        await pilot.press("g")
        assert "▸ rank 0 " in screen_text(app)


async def test_the_cursor_tells_of_its_rank_and_opens_it(dashboard):
    async with dashboard(snapshot(cluster_run())) as (app, pilot):
        await pilot.press("2", "right", "right", "down")
        text = screen_text(app)
        assert "▸ rank 50 · cuda:2  step 84.0 ms" in text
        assert "median 80.0 ms" in text
        assert "highest 120 ms rank 341" in text
        await pilot.press("w", "enter")
        assert app.panel == "rank"
        assert app.query_one(RankDetail).key == (341, "cuda:5")
        assert "[2 Ranks]" in screen_text(app)
        await pilot.press("escape")
        assert app.panel == "heatmap"
        assert "▸ rank 341" in screen_text(app)


async def test_a_click_chooses_a_cell_and_a_second_opens_it(dashboard):
    async with dashboard(snapshot(cluster_run())) as (app, pilot):
        await pilot.press("2")
        lines = screen_text(app).splitlines()
        row = next(i for i, text in enumerate(lines) if "node-013" in text)
        place = (lines[row].index("node-013") + len("node-013 ") + 4, row)
        await pilot.click(offset=place)
        assert "▸ rank 108 · cuda:4" in screen_text(app)
        await pilot.click(offset=place)
        assert app.query_one(RankDetail).key == (108, "cuda:4")


async def test_every_metric_comes_up_by_key_and_by_click(dashboard):
    async with dashboard(snapshot(dp_run()), size=(80, 24)) as (app, pilot):
        await pilot.press("2")
        for metric in (*METRICS[1:], METRICS[0]):
            await pilot.press("m")
            assert f"[{metric.title}]" in screen_text(app)
            assert f"4 ranks by {metric.told}" in screen_text(app)
        assert "not known in this run" not in screen_text(app)
        await pilot.press("M", "M")
        assert "not known in this run" in screen_text(app)  # no GPU here
        lines = screen_text(app).splitlines()
        row = next(i for i, text in enumerate(lines) if " m  step" in text)
        await pilot.click(offset=(lines[row].index("memory"), row))
        assert "vgpu:0  memory 56.2 MiB" in screen_text(app)
        assert "lowest 30.9 MiB vgpu:1" in screen_text(app)


async def test_of_few_ranks_every_known_metric_has_a_row_on_a_scale_of_its_own(dashboard):
    async with dashboard(snapshot(dp_run()), size=(80, 24)) as (app, pilot):
        await pilot.press("2")
        lines = screen_text(app).splitlines()
        rows = {words[0]: words[1:] for text in lines if len(words := text.split()) > 4}
        assert rows["memory"] == ["██", "56.2", "MiB", *["▁▁", "30.9", "MiB"] * 3]
        assert "wait" not in rows  # of a process that no other waits for nothing is known
        await pilot.press("right", "down", "down")
        assert "▸ rank 0 · vgpu:1  memory 30.9 MiB" not in screen_text(app)
        assert "▸ rank 0 · vgpu:1  traffic 24.9 MiB" in screen_text(app)
        at = next(i for i, text in enumerate(lines) if text.startswith("  memory"))
        await pilot.click(offset=(TITLE + 3 * FIGURE_CELL + 2, at))
        assert "▸ rank 0 · vgpu:3  traffic" in screen_text(app)
        await pilot.click(offset=(3, at))
        assert "▸ rank 0 · vgpu:3  memory 30.9 MiB" in screen_text(app)


async def test_the_cursor_stays_on_its_rank_when_ranks_come_and_go(dashboard):
    async with dashboard(snapshot(cluster_run())) as (app, pilot):
        await pilot.press("2", "w")
        app._source.queue.put(snapshot(cluster_run(ranks=2048)))
        await shown(app, pilot, lambda: len(app.frame.view.run.ranks) == 2048)
        assert "▸ rank 341 " in screen_text(app)
        await pilot.resize_terminal(200, 60)
        await pilot.pause()
        assert "▸ rank 341 " in screen_text(app)


@pytest.mark.parametrize("scene", [starting_run, hostile_run])
@pytest.mark.parametrize("size", [(80, 24), (240, 70)])
async def test_unknown_figures_and_hostile_names(dashboard, scene, size):
    async with dashboard(snapshot(scene()), size=size) as (app, pilot):
        await pilot.press("2", "m", "w", "right", "down", "G")
        text = screen_text(app)
        assert not any(ord(c) < 32 and c != "\n" for c in text)
        assert "–" in text


async def test_in_a_hang_the_ranks_that_are_waited_for_stand_out(dashboard):
    for size in ((80, 24), (120, 35)):
        async with dashboard(*hung(), size=size) as (app, pilot):
            await pilot.press("2")
            text = screen_text(app)
            body = "\n".join(text.splitlines()[4:-3])
            assert body.count("✗✗") * 3 == body.count("‖‖")  # 2 of 8, whatever has rows
            marked = size[0] > 80
            assert ("✗ rank 5" in body and "✗ rank 7" in body) == marked


async def test_without_colour_the_blocks_still_tell(dashboard, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    async with dashboard(snapshot(ddp_run(ranks=64))) as (app, pilot):
        await pilot.press("2")
        assert "▃▃ 80.0 ms" in screen_text(app)
