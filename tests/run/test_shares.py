"""Rules on shares of the step, memory over time and the loss; history of alerts."""

import math

import msgspec
import pytest

from dpwatch.run.derive.rank_metrics import IN_STEP
from dpwatch.run.derive.summarize import summarize
from dpwatch.run.diagnose import (
    comm_bound,
    input_bound,
    master_imbalance,
    memory_growth,
    memory_imbalance,
    nan_loss,
    overlap_poor,
    review,
)
from dpwatch.run.diagnose.alerts import KEPT, kept
from dpwatch.run.model.snapshot import (
    Balance,
    Categories,
    Diagnosis,
    MemoryUse,
    PhaseTimes,
    StepTime,
)
from dpwatch.run.state.apply import apply
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import ByCategory, Memory
from tests.frames import MS, batch, collective, ddp_run, hello, played, step

MIB = 1 << 20


def rows(*changes, strategy="ddp", steps=20):
    """A run of four ranks with steps of 100 ms; `changes` are per rank, or one for all."""
    run = summarize(played(ddp_run(steps=steps)))
    each = changes * len(run.ranks) if len(changes) == 1 else changes
    base = {"step_ms": StepTime(100.0, 100.0, 100.0), "runqueue_wait": 0.0}
    ranks = [
        msgspec.structs.replace(row, **(base | change))
        for row, change in zip(run.ranks, each, strict=True)
    ]
    return msgspec.structs.replace(run, ranks=ranks, strategy=strategy)


def data(ms):
    return {"phases_ms": PhaseTimes(data=ms)}


def test_input_bound_is_the_data_phase_of_most_ranks():
    found = input_bound.rule(rows(data(30.0)))
    assert (found.severity, found.evidence["cost"]) == ("warning", 0.3)
    assert "num_workers" in found.text
    assert input_bound.rule(rows(data(12.0))).severity == "info"
    assert input_bound.rule(rows(data(9.0))) is None
    assert input_bound.rule(rows(data(None))) is None
    assert input_bound.rule(rows(*map(data, (50.0, 0.1, 0.1, 0.1)))) is None  # a straggler
    assert input_bound.rule(rows(*map(data, (50.0, 50.0, 0.1, 50.0)))).ranks == [0, 1, 3]
    assert input_bound.rule(rows(data(30.0), steps=5)) is None


def test_input_bound_leaves_out_the_wait_for_a_core_in_its_severity_too():
    for queued, severity in ((0.04, "warning"), (0.06, "info"), (0.19, "info")):
        found = input_bound.rule(rows(data(30.0) | {"runqueue_wait": queued}))
        assert (found.severity, found.evidence["cost"]) == (severity, 0.3)
    assert input_bound.rule(rows(data(30.0) | {"runqueue_wait": 0.21})) is None


def exchanging(exposed, *, wait=0, queue=0, total=50, backward=80, strategy="ddp", cores=8):
    """Arguments of the rule: two ranks with steps of 100 ms; `wait` is for rank 1, always late."""
    state = RunState("run")
    for r in range(2):
        apply(state, batch(hello(2, strategy=strategy, cores=cores), rank=r))
    for index in range(20):
        for r in range(2):
            at = 10 + index * 100 + r * wait
            told = step(
                index,
                exposed_ns=None if exposed is None else exposed * MS,
                backward_ns=backward * MS,
                runqueue_ns=queue * MS,
                comm_ns=None if total is None else total * MS,
            )
            call = collective(index, index, nbytes=MIB, ranks=2, at_ms=at, took_ms=total)
            apply(state, batch(call, told, rank=r, now_ns=told.end_ns))
    return summarize(state), state


def test_comm_bound_is_exposed_time_that_late_ranks_do_not_explain():
    found = comm_bound.rule(*exchanging(45))
    assert (found.severity, found.evidence["cost"]) == ("warning", 0.45)
    assert found.evidence["bytes_per_step"] == MIB
    assert "no_sync" in found.text
    assert comm_bound.rule(*exchanging(30)).severity == "info"
    assert comm_bound.rule(*exchanging(24)) is None
    assert comm_bound.rule(*exchanging(45, wait=30)) is None
    assert comm_bound.rule(*exchanging(45, queue=20)) is None
    assert comm_bound.rule(*exchanging(45, cores=1)) is None
    assert comm_bound.rule(*exchanging(None)) is None


def calling(
    calls, nbytes, *, exposed=45, queue=0, late=0, param_bytes=None, strategy="ddp", op="all_reduce"
):
    """Arguments of the rule: two ranks with `calls` calls of `nbytes` per step.

    Rank 1 enters each `late` milliseconds late.
    """
    state = RunState("run")
    for r in range(2):
        greeting = hello(2, cores=8, param_bytes=param_bytes, strategy=strategy)
        apply(state, batch(greeting, rank=r))
    for index in range(20):
        for r in range(2):
            each = [
                collective(
                    index,
                    index * calls + i,
                    op=op,
                    nbytes=nbytes,
                    ranks=2,
                    at_ms=index * 100 + 10 + r * late,
                )
                for i in range(calls)
            ]
            told = step(index, exposed_ns=exposed * MS, runqueue_ns=queue * MS)
            for at in range(0, calls, 32):
                apply(state, batch(*each[at : at + 32], rank=r, now_ns=told.end_ns))
            apply(state, batch(told, rank=r, now_ns=told.end_ns))
    return summarize(state), state


@pytest.mark.parametrize(
    ("calls", "nbytes", "params", "pattern", "words"),
    [
        (64, 1024, 64 * 1024, "many_calls", "64.0 KiB per step in 64 calls"),
        (16, MIB, 2 * MIB, "repeated", "saves 7 of 8 exchanges"),
        (1, 84, MIB, "few_bytes", "84 B per step in 1 call, most"),
        (2, MIB, 2 * MIB, "bytes", "HSDP"),
        (2, MIB, None, "bytes", "HSDP"),
    ],
)
def test_comm_bound_knows_many_calls_from_many_bytes(calls, nbytes, params, pattern, words):
    found = comm_bound.rule(*calling(calls, nbytes, param_bytes=params))
    assert (found.severity, found.evidence["pattern"]) == ("warning", pattern)
    assert found.evidence["calls_per_step"] == calls
    assert words in found.text
    assert ("HSDP" in found.text) == (pattern == "bytes")


def test_comm_bound_advises_no_sync_under_ddp_only():
    found = comm_bound.rule(*calling(16, MIB, param_bytes=2 * MIB, strategy=""))
    assert found.evidence["pattern"] == "bytes"


def test_comm_bound_of_messages_is_a_pipelines():
    found = comm_bound.rule(*calling(4, MIB, op="recv", strategy=""))
    assert found.evidence["pattern"] == "messages"
    assert "wait for each other" in found.text


def test_counted_findings_are_reported_although_cores_are_short():
    for calls, nbytes, least in ((64, 1024, 25), (16, MIB, 10)):
        found = comm_bound.rule(*calling(calls, nbytes, queue=30, param_bytes=2 * MIB))
        assert found.severity == "info"
        assert "waiting for a core" in found.text
        quiet = calling(calls, nbytes, exposed=least - 1, queue=30, param_bytes=2 * MIB)
        assert comm_bound.rule(*quiet) is None
    assert comm_bound.rule(*calling(2, MIB, queue=30)) is None


def test_many_calls_are_a_hint_if_waits_for_late_ranks_are_included():
    found = comm_bound.rule(*calling(64, 1024, late=30))
    assert (found.severity, found.evidence["pattern"]) == ("info", "many_calls")
    assert "waits for late ranks included" in found.text
    assert comm_bound.rule(*calling(64, 1024, exposed=24, late=30)) is None


def test_overlap_poor_is_exposed_time_that_backward_could_hide():
    found = overlap_poor.rule(*exchanging(40, total=50, backward=100))
    assert (found.severity, found.evidence["exposed_share"]) == ("info", 0.8)
    assert "bucket_cap_mb" in found.text
    assert "FSDP" in overlap_poor.rule(*exchanging(40, backward=90, strategy="fsdp")).text
    assert overlap_poor.rule(*exchanging(29, total=50, backward=90)) is None
    assert overlap_poor.rule(*exchanging(40, total=50, backward=60)) is None
    assert overlap_poor.rule(*exchanging(40, wait=32, backward=90)) is None
    assert overlap_poor.rule(*exchanging(40, backward=90, strategy="dp")) is None
    assert overlap_poor.rule(*exchanging(40, total=None, backward=90)) is None


def peaks(*mib, capacity=None, **more):
    return [
        {"memory": MemoryUse(peak_bytes=m * MIB, capacity_bytes=capacity, activations=m * MIB)}
        for m in mib
    ]


def test_memory_imbalance_names_the_fullest_rank_and_what_it_has_more_of():
    found = memory_imbalance.rule(rows(*peaks(40, 40, 60, 41)))
    assert (found.ranks, found.severity) == ([2], "info")
    assert found.evidence["others_median_peak_bytes"] == 40 * MIB
    assert found.evidence["category"] == "activations"
    assert found.evidence["category_more_bytes"] == 20 * MIB
    tight = memory_imbalance.rule(rows(*peaks(40, 40, 60, 41, capacity=70 * MIB)))
    assert tight.severity == "warning"


def keeping(*mib, source="rss", at_end="", strategy="ddp", heap=True, **more):
    """Ranks that hold this many MiB between steps, in the category `at_end` if given."""
    each = []
    for m in mib:
        end = Categories(**{at_end: m * MIB}) if at_end else Categories()
        memory = MemoryUse(
            current_bytes=m * MIB, peak_bytes=900 * MIB, source=source,
            heap_bytes=m * MIB if source == "rss" and heap else None,
            at_step_end=end, **more,
        )  # fmt: skip
        each.append({"memory": memory, "pid": 1000 + len(each)})
    return rows(*each, strategy=strategy)


def test_memory_kept_by_one_rank_is_no_master_imbalance():
    found = master_imbalance.rule(keeping(740, 140, 150, 140))
    assert (found.kind, found.severity, found.ranks) == ("master_imbalance", "info", [0])
    assert found.evidence["device0_held_bytes"] == 740 * MIB
    assert "holds 740 MiB, 600 MiB more than the others (140 MiB)" in found.text
    assert "only this rank keeps it" in found.text
    assert "DistributedDataParallel" not in found.text
    assert master_imbalance.rule(keeping(180, 140, 150, 140)) is None  # processes differ
    assert master_imbalance.rule(keeping(740, 140, 150, 140, heap=False)).ranks == [0]
    other = memory_imbalance.rule(keeping(140, 140, 740, 140))
    assert (other.ranks, other.evidence["held_bytes"]) == ([2], 740 * MIB)
    assert "only this rank keeps it" in other.text


def test_traffic_is_compared_over_the_same_steps_only():
    """Short steps of one rank may be reported a quarter of a second before another's."""
    even = rows({}, strategy="ddp")
    busy = msgspec.structs.replace(even, balance=Balance(traffic_device0_over_median=1.6))
    assert "carries 1.6× the others' traffic" in master_imbalance.rule(busy).text
    first, *others = busy.ranks
    for ahead in (IN_STEP, -IN_STEP):
        apart = msgspec.structs.replace(first, steps=first.steps + ahead)
        assert master_imbalance.rule(msgspec.structs.replace(busy, ranks=[apart, *others])) is None


def test_imbalance_by_design_of_a_sharding_is_named_so():
    held = keeping(80, 40, 40, 40, source="ledger", at_end="optimizer", strategy="zero1")
    found = master_imbalance.rule(held)
    assert (found.severity, found.evidence["category"]) == ("info", "optimizer")
    assert "by design" in found.text
    assert "DistributedDataParallel" not in found.text
    assert "by design" in memory_imbalance.rule(
        keeping(40, 80, 40, 40, source="ledger", at_end="optimizer", strategy="zero1")
    ).text  # fmt: skip


def test_a_full_device_that_keeps_more_is_critical():
    full = keeping(95, 40, 40, 40, source="cuda", capacity_bytes=100 * MIB)
    assert master_imbalance.rule(full).severity == "critical"


def test_memory_imbalance_is_silent_when_nearly_even_or_of_device_0():
    assert memory_imbalance.rule(rows(*peaks(40, 40, 49, 40))) is None
    assert memory_imbalance.rule(rows(*peaks(90, 40, 40, 40))) is None
    assert memory_imbalance.rule(rows(*peaks(40, 40, 60, 40), strategy="ddp-mp")) is None
    unknown = [*peaks(40, 40, 60), {"memory": MemoryUse()}]
    assert memory_imbalance.rule(rows(*unknown)) is None


def holding(held, *, source="ledger", steps=100, every=1, samples=lambda i: 8):
    """A lone rank that holds `held(step)` bytes at the end of each step."""
    state = RunState("run")
    apply(state, batch(hello(1)))
    for i in range(steps):
        size = int(held(i))
        by = ByCategory(params=size)
        records = [step(i, samples=samples(i))]
        if i % every == 0:
            records.append(Memory(0, i, size, size + 5, by, by, source))
        apply(state, batch(*records, seq=i))
    return memory_growth.rule(summarize(state), state)


def test_memory_growth_is_a_steady_slope_with_its_pace():
    found = holding(lambda i: 10 * MIB + i * MIB)
    assert (found.kind, found.severity, found.ranks) == ("memory_growth", "info", [0])
    assert found.evidence["bytes_per_step"] == pytest.approx(MIB, rel=0.02)
    assert found.evidence["to_bytes"] == 109 * MIB
    assert ".item()" in found.text
    assert holding(lambda i: 10 * MIB + i * 60_000).evidence["bytes_per_step"] == pytest.approx(
        60_000, rel=0.05
    )


@pytest.mark.parametrize(
    "held",
    [
        lambda i: 10 * MIB,
        lambda i: 10 * MIB + (i > 50) * 5 * MIB,  # a jump: an evaluation's cache
        lambda i: 10 * MIB + (i % 7) * MIB,  # up and down
        lambda i: 10 * MIB + min(i, 20) * MIB,  # until it has settled
        lambda i: 100 * MIB + i * 20_000,  # under 5 %
        lambda i: 100_000 + i * 1000,  # small change
    ],
)
def test_memory_growth_ignores_growth_that_stops(held):
    assert holding(held) is None


@pytest.mark.parametrize("pace", [1 << 18, MIB, 20 * MIB])
def test_a_leak_shows_within_a_hundred_steps_with_its_true_rate(pace):
    """One step in ten is sampled, and held memory fluctuates a little."""
    found = holding(lambda i: 60 * MIB + i * pace + (i * 7 % 10) * pace / 10, steps=91, every=10)
    assert found.evidence["bytes_per_step"] == pytest.approx(pace, rel=0.2)


def test_growing_batches_are_no_leak():
    def ramp(i):
        return 32 * (1 + i // 8)

    held = lambda i: 8 * MIB + ramp(i) * 64 * 4 * 40  # noqa: E731
    assert holding(held, steps=200) is not None
    assert holding(held, steps=200, samples=ramp) is None
    leak = lambda i: held(i) + i * MIB  # noqa: E731
    found = holding(leak, steps=100, samples=lambda i: 32 + i // 8)
    assert found.evidence["bytes_per_step"] == pytest.approx(MIB, rel=0.2)


def test_a_filling_buffer_is_reported_until_it_is_full():
    fill = lambda i: 20 * MIB + min(i, 90) * MIB  # noqa: E731
    assert "replay buffer" in holding(fill, steps=90).text
    assert holding(fill, steps=300) is None


def test_memory_growth_of_a_whole_process_needs_more_evidence():
    assert holding(lambda i: 500 * MIB + i * MIB // 2, source="rss") is None
    assert holding(lambda i: 500 * MIB + i * 2 * MIB, source="rss") is not None


def losses(*by_rank):
    state = told(*by_rank)
    return nan_loss.rule(summarize(state), state)


def told(*by_rank):
    state = RunState("run")
    for r, values in enumerate(by_rank):
        apply(state, batch(hello(len(by_rank)), rank=r))
        for i, value in enumerate(values):
            apply(state, batch(step(i, loss=value), rank=r, seq=i))
    return state


def test_nan_loss_names_who_was_first_and_what_it_was_before():
    found = losses([2.0, 1.5, math.nan, math.nan], [2.0, 1.6, 1.4, math.inf], [None] * 3)
    assert (found.ranks, found.began, found.severity) == ([0, 1], 2, "critical")
    before = {"step_before": 1, "loss_before": 1.5}
    assert found.evidence == {"step": 2, "value": "nan", "first_rank": 0, **before}
    assert "it was 1.5 in step 1" in found.text
    assert "Rank 0 was first" in found.text


@pytest.mark.parametrize(
    "by_rank",
    [
        [
            [2.0, None, math.nan],
            [2.0, None, None, math.nan],
        ],  # or in the step between
        [[2.0, math.nan], [2.0, math.nan]],
        [[2.0, math.nan], [2.0]],  # what the other's is in that step is not there yet
    ],
)
def test_nan_loss_names_no_rank_if_another_may_have_been_first(by_rank):
    found = losses(*by_rank)
    assert found.evidence["first_rank"] is None
    assert "was first" not in found.text


def test_nan_loss_is_silent_while_the_loss_is_finite():
    assert losses([2.0, 1e30, -5.0], [2.0, 1.0, 0.0]) is None
    assert losses([2.0, math.nan, 1.9]) is None


def test_a_diagnosis_takes_an_earlier_start_that_is_reported_later():
    late = [1.0, 1.0, 1.0, 1.0, math.nan]
    state = told(late, [1.0, 1.0, 1.0])
    held, silent = review(summarize(state), [], {}, state)
    assert [d.since_step for d in held if d.kind == "nan_loss"] == [4]
    state = told(late, [1.0, 1.0, 1.0, math.nan])
    held, _ = review(summarize(state), held, silent, state)
    (found,) = [d for d in held if d.kind == "nan_loss"]
    assert (found.since_step, found.evidence["first_rank"]) == (3, 1)


# -- history ---------------------------------------------------------------------------------------


def said(kind="hang", ranks=(1,), severity="warning", text="still"):
    return Diagnosis(kind, severity, list(ranks), 7, text, {})


def test_an_alert_starts_keeps_its_worst_severity_and_ends():
    (first,) = kept([], [said()], 100.0)
    assert (first.began_s, first.ended_s, first.since_step) == (100.0, None, 7)
    (grown,) = kept([first], [said(ranks=(1, 2), severity="critical", text="more")], 101.0)
    assert (grown.began_s, grown.severity, grown.ranks) == (100.0, "critical", [1, 2])
    (calmer,) = kept([grown], [said(text="less")], 102.0)
    assert (calmer.severity, calmer.text) == ("critical", "less")
    (over,) = kept([calmer], [], 103.0)
    assert (over.ended_s, over.text) == (103.0, "less")
    assert [a.ended_s for a in kept([over], [said()], 110.0)] == [103.0, None]


def test_another_rank_is_another_alert():
    (first,) = kept([], [said()], 100.0)
    alerts = kept([first], [said(ranks=(3,))], 105.0)
    assert [(a.ranks, a.ended_s) for a in alerts] == [([1], 105.0), ([3], None)]


def test_the_history_is_bounded_and_keeps_current_alerts():
    alerts = kept([], [said("hang")], 0.0)
    for i in range(KEPT + 20):
        alerts = kept(alerts, [said("hang"), said("desync")], 1.0 + 2 * i)
        alerts = kept(alerts, [said("hang")], 2.0 + 2 * i)
    assert len(alerts) <= KEPT + 1
    assert (alerts[0].kind, alerts[0].ended_s) == ("hang", None)


def test_a_run_keeps_the_history_in_its_json():
    run = summarize(played(ddp_run(steps=20)))
    assert [a.kind for a in run.alerts] == [d.kind for d in run.diagnoses]
