"""A scenario's lesson: one sentence with its runs' figures."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dpwatch.demo.lessons import lesson
from dpwatch.demo.scenarios import all_scenarios
from dpwatch.run.model.snapshot import CommTimes, Diagnosis, MemoryUse, StepTime
from tests.tui.scenes import starting_run

MIB = 1 << 20


NOTHING_KNOWN = starting_run().run


def run(**fields):
    return replace(NOTHING_KNOWN, **{"state": "finished", **fields})


def ranks(*each):
    """Rows of that many devices, each with the given figures."""
    return [replace(NOTHING_KNOWN.ranks[0], device=f"vgpu:{n}", **e) for n, e in enumerate(each)]


def memory(peak_mib, capacity_mib=10):
    use = MemoryUse(peak_bytes=int(peak_mib * MIB), capacity_bytes=capacity_mib * MIB)
    return {"memory": use}


def test_out_of_memory_is_explained_by_how_full_devices_are():
    fits = run(strategy="dp", title="batch 11 · model", ranks=ranks(memory(9), memory(2)))
    full = run(strategy="dp", title="batch 12 · model", state="failed",
               ranks=ranks(memory(9.8), memory(2)))  # fmt: skip
    ddp = run(strategy="ddp", title="batch 12 · model", ranks=ranks(memory(4), memory(4.1)))
    assert lesson("oom", [fits, full, ddp]) == (
        "dp runs out of memory at batch 12 with device 0 98% full and the others 20% at most; "
        "ddp trains batch 12 with no device over 41%."
    )
    assert lesson("oom", [fits, replace(full, state="finished"), ddp]) == ""
    assert lesson("oom", [fits, full, replace(ddp, state="failed")]) == ""


def test_a_late_rank_is_explained_by_everybodys_step_time():
    def stepping(ms, **more):
        return run(strategy="ddp", ranks=ranks({"step_ms": StepTime(p50=ms)}), **more)

    found = Diagnosis(kind="straggler", severity="warning", ranks=[2], since_step=0,
                          text="", evidence={})  # fmt: skip
    alike, late = stepping(105.0), stepping(210.0, diagnoses=[found])
    assert lesson("straggler", [alike, late]) == (
        "Rank 2 is late, and all ranks wait for it: a step takes 210 ms on every rank, and 105 ms "
        "where none is late."
    )
    assert lesson("straggler", [alike, stepping(210.0)]) == ""


def test_the_gil_is_explained_by_the_share_spent_waiting():
    threads = run(strategy="dp", ranks=ranks({"gil_wait": 0.02}, {"gil_wait": 0.14}))
    processes = run(strategy="ddp", ranks=ranks({"gil_wait": 0.0}))
    assert lesson("gil", [threads, processes]) == (
        "dp's threads share one GIL and wait for it up to 14% of a step; ddp's processes, each "
        "with its own, 0%."
    )


def test_overlap_is_explained_by_exposed_communication():
    def exposed(ms, share):
        return run(ranks=ranks({"comm_ms": CommTimes(exposed=ms, exposed_share=share)}))

    assert lesson("overlap", [exposed(31.0, 0.28), exposed(92.0, 0.61)]) == (
        "All-reduced after backward, compute waits 92.0 ms a step for gradients, 61% of it; "
        "all-reduced during backward 31.0 ms, 28%."
    )


def test_reshard_is_explained_by_traffic_and_peak():
    def moving(mib, peak):
        moved = {"sent_bytes_per_step": mib * MIB // 2, "received_bytes_per_step": mib * MIB // 2}
        return run(ranks=ranks(moved | memory(peak)))

    assert lesson("reshard", [moving(24, 30), moving(16, 40)]) == (
        "Kept for backward, parameters are gathered once a step, not twice: each device moves "
        "16.0 MiB instead of 24.0 MiB, and peaks at 40.0 MiB instead of 30.0 MiB."
    )


@pytest.mark.parametrize("scenario", [each.name for each in all_scenarios()])
@pytest.mark.parametrize("count", range(4))
def test_unmeasured_figures_give_no_lesson(scenario, count):
    assert lesson(scenario, [run(ranks=ranks({}, {}))] * count) == ""
