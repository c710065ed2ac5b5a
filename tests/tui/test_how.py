"""How it works: every strategy has its steps, and each figure is the run's own."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dpwatch.run.derive.collective_totals import per_rank
from dpwatch.run.model import snapshot as s
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.palette import palette
from dpwatch.tui.draw.sentences import STRATEGIES
from dpwatch.tui.snapshots.frame import Frame
from dpwatch.tui.views.how_it_works.panel import how_lines
from dpwatch.tui.views.how_it_works.steps import SCHEMES

from .scenes import ddp_run, dp_run, hostile_run, snapshot, starting_run
from .schemes import LOGITS, NAMES, A, P, scheme_run

COLOR, MONO = palette(), palette(mono=True)


def drawn(view, width=100, colors=MONO):
    frame = Frame(snapshot=snapshot(view), run_id=view.run.run_id)
    return how_lines(frame, width, colors)


def text_of(view, width=100):
    return "\n".join(each.plain for each in drawn(view, width))


def test_every_strategy_has_its_steps():
    assert set(SCHEMES) == set(STRATEGIES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_step_reads_is_what_the_strategy_does(name):
    run = scheme_run(name).run
    steps = SCHEMES[name].steps
    assert {each.op for each in run.collectives} == {step.op for step in steps} - {""}
    kinds = {each.kind for each in run.transfers}
    assert kinds == {kind for step in steps for kind in step.transfers}


@pytest.mark.parametrize("colors", [COLOR, MONO])
@pytest.mark.parametrize("width", [77, 100, 120, 160, 240])
def test_it_keeps_within_its_width_and_cuts_no_figure(width, colors):
    for name in NAMES:
        lines = drawn(scheme_run(name), width, colors)
        assert all(each.cell_len == width for each in lines)
        assert not [each.plain for each in lines if "iB…" in each.plain or "ms…" in each.plain]
    for view in (hostile_run(), starting_run(), ddp_run(ranks=1), ddp_run(ranks=1000)):
        assert all(each.cell_len == width for each in drawn(view, width, colors))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 6, 7, 64])
def test_a_ring_of_any_size(ranks):
    diagram = text_of(ddp_run(ranks=ranks)).split("A step, ")[0]
    names = ["vgpu:0"] if ranks == 1 else ["vgpu:0", "vgpu:1", f"vgpu:{ranks - 1}"]
    for name in names:
        assert f" {name} " in diagram


def test_dp_is_a_star_with_what_goes_out_and_comes_back():
    text = text_of(scheme_run("dp"))
    out, back = 32_768 + P + LOGITS, LOGITS + P
    assert text.count(f"{fmt.size(out)} ──▶") == 3
    assert text.count(f"◀── {fmt.size(back)}") == 3
    assert f"vgpu:0 sends {fmt.size(3 * out)} and receives {fmt.size(3 * back)} per step" in text


def test_the_host_is_the_centre_where_it_serves():
    text = text_of(scheme_run("ps-cpu"))
    assert "│   host   │" in text
    assert f"host sends {fmt.size(4 * P)} and receives {fmt.size(4 * P)} per step" in text


def test_an_all_reduce_is_its_two_halves():
    text = text_of(scheme_run("ddp"))
    half = fmt.size(P * 3 // 4)
    assert f"1. reduce-scatter  3 hops, {half} a rank" in text
    assert f"2. all-gather      3 hops, {half} a rank" in text


def test_a_rank_of_two_groups_counts_its_own_only():
    run = scheme_run("hsdp").run
    groups = [
        replace(each, group=f"{each.group} {number}")
        for each in run.collectives
        for number in (1, 2)
    ]
    one = {each.op: each for each in per_rank(run)}
    both = {each.op: each for each in per_rank(replace(run, collectives=groups))}
    for op, each in both.items():
        assert (each.groups, each.count) == (2, one[op].count)
        assert (each.hands_in, each.sends) == (one[op].hands_in, one[op].sends)
    text = text_of(replace(scheme_run("hsdp"), run=replace(run, collectives=groups)))
    assert "all-gather ×2 in 2 groups" in text
    assert fmt.size(P + P // 2) in text


def test_the_step_of_a_phase_tells_its_slowest_device():
    run = dp_run().run
    slowest = max(rank.phases_ms.backward for rank in run.ranks)
    row = next(each for each in text_of(dp_run()).splitlines() if "6. backward" in each)
    assert fmt.millis(slowest) in row


def test_the_unknown_is_a_dash():
    rows = text_of(starting_run()).splitlines()
    for step in ("1. scatter", "3. forward", "7. reduce", "8. update"):
        row = next(each for each in rows if step in each)
        assert row.split()[-1] == "–", row
    assert "0 B" not in "\n".join(rows)


def test_a_strategy_not_known_is_told_by_what_it_sends():
    for run in (ddp_run().run, dp_run().run):
        view = replace(ddp_run(), run=replace(run, strategy="mine"))
        text = text_of(view)
        assert "unknown strategy" in text
        assert "all-reduce" in text if run.collectives else "replicate" in text
    alone = replace(ddp_run(), run=replace(ddp_run().run, strategy="", collectives=[]))
    assert "forward" in text_of(alone)


def test_what_is_kept_is_the_step_end_and_not_the_peak():
    text = text_of(scheme_run("fsdp"))
    assert f"P {fmt.size(P // 4)}  G {fmt.size(P // 4)}  O {fmt.size(P // 2)}" in text
    assert fmt.size(A) not in text


def test_no_run_no_explanation():
    frame = Frame(snapshot=s.Snapshot(runs=(), wall_s=0.0))
    assert "no run to explain yet" in how_lines(frame, 80, COLOR)[0].plain
