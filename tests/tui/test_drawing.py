"""The pure functions behind the widgets: text, plots, blocks, columns, sentences, panels."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from dpwatch.run.derive.comparison import others_median, peak_bytes
from dpwatch.run.model import snapshot as s
from dpwatch.text_safety import clean
from dpwatch.tui.draw.bar_segments import legend_lines, memory_parts
from dpwatch.tui.draw.layout import beside, boxed, table
from dpwatch.tui.draw.palette import palette
from dpwatch.tui.draw.plot import _DOTS, Grid, Series, plot, sparkline
from dpwatch.tui.draw.sentences import balance_sentence, devices_of, odd_states
from dpwatch.tui.draw.text import clip, fitted, left, line, right, wrapped
from dpwatch.tui.snapshots.frame import Frame, latest_by_strategy, named_rows
from dpwatch.tui.views.alerts.findings import diagnosis_lines, who, with_unit
from dpwatch.tui.views.communication.tables import communication_lines
from dpwatch.tui.views.compare.panel import compare_lines
from dpwatch.tui.views.host_gpus import gpu_lines
from dpwatch.tui.views.overview import summary_lines
from dpwatch.tui.views.rank_detail import rank_lines
from dpwatch.tui.views.registry import VIEWS
from dpwatch.tui.views.waiting_and_help import help_lines, waiting_lines
from dpwatch.tui.widgets.header import header_line, nav_line
from dpwatch.tui.widgets.rank_columns import Scale, columns_for, head_line, matches, row_lines

from .conftest import calm
from .scenes import GPUS, cluster_run, ddp_run, dp_run, hostile_run, snapshot, starting_run

COLOR, MONO = palette(), palette(mono=True)
WIDTHS = (80, 100, 120, 160, 240)


def frame_of(*views, **options):
    return Frame(snapshot=snapshot(*views), run_id=views[0].run.run_id, **options)


def plain(lines):
    return "\n".join(each.plain for each in lines)


@calm
@given(st.text(max_size=300))
def test_cleaned_text_has_nothing_a_terminal_acts_on(text):
    cleaned = clean(text, 100)
    assert len(cleaned) <= 100
    assert not [c for c in cleaned if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def test_cleaning_keeps_words_apart_and_letters_as_they_are():
    assert clean("a\nb\tc  é 漢 [red]") == "a b c é 漢 [red]"
    assert clean("\x1b]0;owned\x07x\u202ey") == "]0;ownedxy"


@calm
@given(st.text(st.sampled_from("ab漢é "), max_size=40), st.integers(min_value=0, max_value=30))
def test_padding_gives_exactly_the_width(text, width):
    assert line((left(text, width), COLOR.text)).cell_len == width
    assert line((right(text, width), COLOR.text)).cell_len == width
    assert line((clip(text, width), COLOR.text)).cell_len <= width
    assert fitted(line((text, COLOR.text)), width).cell_len == width


@calm
@given(st.text(max_size=200), st.integers(min_value=8, max_value=60))
def test_wrapped_lines_keep_within_the_width(text, width):
    assert all(each.cell_len <= width for each in wrapped(clean(text), width, COLOR.text))


curves = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30).map(
    lambda ys: s.Curve(tuple(range(len(ys))), tuple(ys))
)


@calm
@example(s.Curve((0, 1), (1.7976931348623157e308, -1e292)), s.Curve(), 1, 0)
@given(curves, curves, st.integers(min_value=0, max_value=90), st.integers(0, 12))
def test_a_plot_keeps_its_size_whatever_the_values(one, two, width, height):
    series = [Series(name=n, curve=c, style=COLOR.text) for n, c in (("dp", one), ("ddp", two))]
    lines = plot(series, width, height, COLOR, label=lambda v: f"{v:.3g}")
    assert len(lines) == height
    assert all(each.cell_len == width for each in lines)
    assert sparkline(one, width, COLOR.text).cell_len == width


def test_a_falling_curve_falls():
    curve = s.Curve((0, 1, 2, 3), (3.0, 2.0, 1.0, 0.0))
    series = [Series(name="dp", curve=curve, style=COLOR.text)]
    lines = [each.plain for each in plot(series, 30, 5, COLOR, label=lambda v: f"{v:.1f}")]
    assert lines[0].startswith("3.0 ⢇") or lines[0].split()[1][0] > "\u2800"
    first = [row.index(next(c for c in row if "\u2800" < c < "\u28ff")) for row in lines[:4]]
    assert first == sorted(first)
    assert lines[3].startswith("0.0 ")
    assert lines[3].rstrip().endswith("dp")
    assert "step 0" in lines[4]


def test_a_high_plot_has_a_middle_on_its_axis():
    curve = s.Curve((0, 1), (1.0, 3.0))
    series = [Series(name="", curve=curve, style=COLOR.text)]
    for height, ticks in ((8, ["3.0", "2.0", "1.0"]), (7, ["3.0", "1.0"])):
        lines = plot(series, 30, height, COLOR, label=lambda v: f"{v:.1f}")
        assert [row for each in lines[:-1] if (row := each.plain[:3]).strip()] == ticks


def test_boxes_and_columns_fill_their_cells():
    box = boxed("Title", [line(("x" * 50, COLOR.text))], 20, 4, COLOR)
    assert [each.cell_len for each in box] == [20] * 4
    both = beside([box, boxed("B", [], 10, 6, COLOR)])
    assert [each.cell_len for each in both] == [31] * 6


def test_a_table_drops_whole_columns_and_cuts_no_figure():
    rows = [("dp", "56.2 MiB", "99.0 ms")]
    assert "99.0 ms" not in plain(table(("name", "peak", "step"), rows, 20, COLOR))
    assert "56.2 MiB" in plain(table(("name", "peak", "step"), rows, 20, COLOR))


@pytest.mark.parametrize("colors", [COLOR, MONO, palette(dark=False)])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("view", [dp_run(), ddp_run(), starting_run(), hostile_run()])
def test_every_panel_keeps_within_its_width(view, width, colors):
    frame = frame_of(view, dp_run())
    panels = [
        summary_lines(frame, width, 24, colors),
        summary_lines(frame, width, 45, colors),
        compare_lines(frame, width, colors),
        communication_lines(view.run, width, colors),
        rank_lines(view, 0, width, colors),
        help_lines(VIEWS, "compare", width, colors),
        waiting_lines("a notice", "", (), width, 20, colors),
        waiting_lines("a notice", "", GPUS, width, 20, colors),
        legend_lines(width, colors),
        [header_line(frame, "dpwatch", width, colors)],
        [nav_line(frame, VIEWS, "overview", width, colors)],
        *(diagnosis_lines("ddp", d, width, colors, chosen=True) for d in view.run.diagnoses),
    ]
    for lines in panels:
        assert all(each.cell_len <= width for each in lines), plain(lines)


def test_gpus_of_several_hosts_stand_below_each_other():
    hosts = [
        *(replace(each, host="node1") for each in GPUS),
        *(s.HostGpu(i, "H100 \x1b[31m", host="node2\x1b[2J") for i in range(9)),
    ]
    for height in (3, 6, 12, 40):
        text = plain(gpu_lines(hosts, 100, height, COLOR))
        assert len(text.splitlines()) <= height
        assert "\x1b" not in text
    assert "GPUs of node1" in text
    assert text.index("GPUs of node1") < text.index("GPUs of node2[2J")
    assert text.count("H100 [31m") == 9
    assert "–" in text
    cut = plain(gpu_lines(hosts, 100, 12, COLOR))
    assert "and 6 more" in cut
    lines = plain(waiting_lines("no run on node1\nnode2: down", "Watching", hosts, 100, 30, COLOR))
    assert "GPUs of node1" in lines
    assert "no run on node1\n" in lines.replace(" \n", "\n")
    assert "node2: down" in lines


def test_nothing_of_the_help_is_cut():
    whole = " ".join(plain(help_lines(VIEWS, "compare", 160, COLOR)).split())
    narrow = plain(help_lines(VIEWS, "compare", 76, COLOR))
    assert "…" not in narrow
    assert [w for w in whole.split() if "─" not in w] == [w for w in narrow.split() if "─" not in w]


@pytest.mark.parametrize("width", [*WIDTHS, *range(77, 130, 7)])
@pytest.mark.parametrize("view", [dp_run(), ddp_run(ranks=3)])
def test_rows_fit_and_figures_are_whole(view, width):
    layout, scale = columns_for(view.run, width), Scale.of(view.run)
    assert head_line(view.run, layout, COLOR).cell_len <= width
    for rank in view.run.ranks:
        lines = row_lines(rank, layout, scale, COLOR, height=3, chosen=False)
        assert len(lines) == 3
        assert all(each.cell_len <= width for each in lines)
        assert "…" not in plain(lines)


def test_narrow_tables_keep_the_most_important_columns():
    titles = {w: [c.title for c in columns_for(dp_run().run, w).columns] for w in (77, 160)}
    for title in ("device", "state", "step time", "peak", "traffic", "memory at peak"):
        assert title in titles[77]
    assert "sent" not in titles[77]
    assert {"sent", "received", "GIL", "idle", "queue"} <= set(titles[160])


def test_the_virtual_devices_are_called_so():
    for height in (24, 45):
        text = plain(summary_lines(frame_of(dp_run()), 158, height, COLOR))
        assert "4 virtual devices" in text
        assert "on this host's 2 CPU cores" in text
    view = dp_run()
    assert devices_of(replace(view, run=replace(view.run, devices="cuda"))) == (
        "4 CUDA devices",
        "on box",
    )


@pytest.mark.parametrize("width", [80, 158])
def test_over_ssh_the_host_is_named(width):
    frame = frame_of(replace(dp_run(), ssh_host="me@node1"))
    assert "dp · demo on me@node1  ● running" in plain(
        [header_line(frame, "dpwatch", width, COLOR)]
    )
    assert "on me@node1's 2 CPU cores" in plain(summary_lines(frame, width, 45, COLOR))


def test_device_0_against_the_rest_in_words_and_numbers():
    sentence = balance_sentence(dp_run().run)
    assert sentence == "Device 0 holds 1.82× the others' memory and carries 3.00× their traffic."
    assert balance_sentence(ddp_run().run).startswith("Balanced: device 0 has 1.00×")
    assert "not measured yet" in balance_sentence(starting_run().run)


def test_nothing_is_said_of_what_is_not_known():
    unknown = plain(summary_lines(frame_of(starting_run()), 158, 45, COLOR))
    assert "– → –" in unknown
    assert " 0 MiB" not in unknown
    assert "0 samples" not in unknown


def test_one_run_says_that_the_next_will_stand_beside_it():
    text = plain(compare_lines(frame_of(dp_run()), 120, COLOR))
    assert "One run so far (dp); the next strategy will appear beside it." in text


def test_the_latest_run_stands_for_its_strategy():
    older = replace(dp_run(), run=replace(dp_run().run, run_id="older"))
    views = latest_by_strategy(snapshot(dp_run(), ddp_run(), older))
    assert [view.run.run_id for view in views] == ["run-dp", "run-ddp"]


def test_the_others_median_needs_all_of_them():
    run = dp_run().run
    assert others_median(run, peak_bytes) == 32_400_000
    ranks = [*run.ranks[:3], replace(run.ranks[3], memory=s.MemoryUse())]
    assert others_median(replace(run, ranks=ranks), peak_bytes) is None


def test_the_state_lines():
    for state, words in (
        ("finished", "FINISHED"),
        ("failed", "FAILED  CUDA went away"),
        ("hung", "HUNG  CUDA went away"),
        ("lost", "LOST  CUDA went away"),
    ):
        view = dp_run(state=state, reason="CUDA went away")
        assert words in plain(summary_lines(frame_of(view), 120, 24, COLOR))
    stale = replace(dp_run(), connection="stale")
    text = plain(summary_lines(frame_of(stale, silent_s=7.4), 120, 24, COLOR))
    assert "no report from the run's hub for 7 s" in text


def test_memory_the_source_does_not_tell_apart_is_shown_as_such():
    parts = memory_parts(s.MemoryUse(peak_bytes=100, params=30))
    assert parts["untold"] == 70
    assert parts["grads"] is None
    assert "untold" not in memory_parts(s.MemoryUse())


def test_full_bars_mean_capacity_only_where_every_device_has_one():
    run = dp_run().run
    assert Scale.of(run).peak_bytes == 58_900_000
    some = [replace(r, memory=replace(r.memory, capacity_bytes=2**30)) for r in run.ranks]
    assert Scale.of(replace(run, ranks=some)).peak_bytes == 2**30
    assert Scale.of(replace(run, ranks=[*some[:3], run.ranks[3]])).capacity is False


def test_rows_are_filtered_by_every_word():
    rank = dp_run().run.ranks[2]
    assert matches(rank, ["vgpu:2", "run"])
    assert not matches(rank, ["vgpu:2", "failed"])


def test_evidence_carries_its_units():
    assert with_unit("peak_bytes", 58_900_000) == "56.2 MiB"
    assert with_unit("peak_device0_over_median", 1.82) == "1.82×"
    assert with_unit("wait_ms", 3.1) == "3.10 ms"
    assert with_unit("gil_wait", 0.13) == "13%"
    assert with_unit("missing", [1, 3]) == "1, 3"
    assert with_unit("x", None) == "–"
    assert with_unit("loss", math.nan) == "nan"
    assert who([0]) == "rank 0"
    assert who([]) == "the whole run"
    assert who(range(40)) == "ranks 0-39"


def test_copies_are_summed_by_kind():
    text = plain(communication_lines(dp_run().run, 100, COLOR))
    assert "replicate: vgpu:0 → 3 devices" in text
    assert "36.9 MiB" in text


def test_a_thousand_runs_are_counted_where_their_names_do_not_fit():
    views = [replace(dp_run(), run=replace(dp_run().run, run_id=str(i))) for i in range(40)]
    frame = Frame(snapshot=snapshot(*views), run_id="39")
    text = nav_line(frame, VIEWS, "overview", 100, COLOR).plain
    assert "run 1 of 40" in text


def test_dp_is_one_process_whatever_its_world_size():
    assert dp_run().run.world_size == 4
    assert "rank" not in [column.title for column in columns_for(dp_run().run, 158).columns]
    assert "processes  1" in plain(summary_lines(frame_of(dp_run()), 158, 45, COLOR))
    assert "processes  4, gloo" in plain(summary_lines(frame_of(ddp_run()), 158, 45, COLOR))


def test_of_more_ranks_than_a_screen_has_those_in_a_bad_state_are_counted():
    assert odd_states(cluster_run().run) == "1 lost, 1 failed"
    assert odd_states(ddp_run(ranks=64).run) == ""
    assert odd_states(cluster_run(ranks=16).run) == ""  # their rows say so


def test_the_overview_tells_the_largest_share_of_a_step_that_waits_for_communication():
    view = ddp_run()
    rows = [
        replace(
            row,
            step_ms=s.StepTime(p50=80.0, p95=90.0, last=80.0),
            comm_ms=s.CommTimes(
                total=40.0, exposed=exposed, wait=0.0, exposed_share=exposed and exposed / 80
            ),
        )
        for row, exposed in zip(view.run.ranks, (8.0, 20.0, None, 4.0), strict=True)
    ]
    told = snapshot(replace(view, run=replace(view.run, ranks=rows)))
    frame = Frame(snapshot=told, run_id=view.run.run_id)
    for width, height in ((78, 24), (118, 35)):
        text = "\n".join(each.plain for each in summary_lines(frame, width, height, COLOR))
        assert "exposed 25%" in text
        assert "80.0 ms" in text


def test_a_frame_looks_like_the_one_before_as_long_as_nothing_is_new():
    view = ddp_run()
    first = Frame(snapshot=s.Snapshot((view,), 100.2), run_id=view.run.run_id)
    assert Frame(snapshot=s.Snapshot((view,), 100.7), run_id=view.run.run_id).looks_like(first)
    for other in (
        Frame(snapshot=s.Snapshot((view,), 101.0), run_id=view.run.run_id),
        Frame(snapshot=s.Snapshot((view,), 100.2, "news"), run_id=view.run.run_id),
        Frame(snapshot=s.Snapshot((view, view), 100.2), run_id=view.run.run_id),
        Frame(snapshot=s.Snapshot((replace(view),), 100.2), run_id=view.run.run_id),
        Frame(snapshot=s.Snapshot((view,), 100.2), run_id=view.run.run_id, paused=True),
        Frame(snapshot=s.Snapshot((view,), 100.2)),
    ):
        assert not other.looks_like(first)


@calm
@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(-5, 5)), min_size=2, max_size=80),
    st.integers(1, 12),
    st.integers(1, 4),
)
def test_a_curve_goes_through_the_dots_of_all_its_points(points, width, height):
    points = sorted(points)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    grid = Grid(width, height, (min(xs), max(xs)), (min(ys), max(ys)))
    grid.draw(points, COLOR.accent)
    for point in points:
        x, y = grid.dot(point)
        assert grid._bits[y // 4][x // 2] & _DOTS[y % 4][x % 2]


def test_without_torch_nothing_is_offered_that_needs_it():
    told = [plain(waiting_lines("", "", (), 100, 30, COLOR, trains=each)) for each in (True, False)]
    assert [("dpwatch demo" in each, "dpwatch run -- " in each) for each in told] == [
        (True, True),
        (False, True),
    ]


def found(kind, severity, *ranks, words=9, **evidence):
    return s.Diagnosis(kind, severity, list(ranks), 3, f"{kind}: {'word ' * words}end.", evidence)


def finding_lines(*diagnoses, width=80, height=24):
    view = ddp_run()
    frame = frame_of(replace(view, run=replace(view.run, diagnoses=list(diagnoses))))
    lines = plain(summary_lines(frame, width, height, COLOR)).splitlines()
    first = next(i for i, each in enumerate(lines) if each.startswith((" ✗", " !", " i", " ✓")))
    return lines[first:]


def test_every_finding_has_a_line_and_its_whole_text_where_there_is_room():
    three = [found("hang", "critical", 1), found("straggler", "info", 2), found("oom_risk", "info")]
    lines = finding_lines(*three)
    assert [each[:12].rstrip() for each in lines] == [" ✗ CRITICAL", " i INFO", " i INFO"]
    assert all(each.rstrip().endswith("end.") for each in lines)
    long = finding_lines(found("hang", "critical", words=60), three[1], width=80, height=30)
    assert "end." in long[-2]
    assert long[-1].startswith(" i INFO")


def test_of_more_findings_than_find_room_the_rest_are_counted():
    lines = finding_lines(*[found("straggler", "info", words=40)] * 30)
    assert lines[-1].strip().endswith("more (8 Alerts)")
    shown = sum(each.startswith(" i") for each in lines)
    assert f"and {30 - shown} more" in lines[-1]
    assert lines[0].rstrip().endswith("…") or lines[1].rstrip().endswith("…")


def test_rows_that_a_finding_is_about_are_marked():
    run = ddp_run().run
    named = replace(run, diagnoses=[
        found("straggler", "warning", 2), found("memory_growth", "critical", 2, 3, device=None),
        found("cpu_oversubscribed", "warning", 0, 1, 2, 3),
    ])  # fmt: skip
    assert named_rows(named) == {(2, "vgpu:2"): "critical", (3, "vgpu:3"): "critical"}
    of_one = replace(dp_run().run, diagnoses=[found("oom_risk", "warning", 0, device="vgpu:0")])
    assert named_rows(of_one) == {(0, "vgpu:0"): "warning"}
    layout, scale = columns_for(run, 120), Scale.of(run)
    drawn = [
        plain(row_lines(run.ranks[2], layout, scale, COLOR, height=1, chosen=True, named=each))
        for each in ("critical", "")
    ]
    assert drawn[0][:2] == "▸✗"
    assert drawn[0].replace("✗", " ") == drawn[1]
