"""Each rule: where it fires, a near miss, and hysteresis."""

import msgspec

from dpwatch.run.derive.summarize import summarize
from dpwatch.run.diagnose import (
    PATIENCE_NS,
    cpu_oversubscribed,
    gil_bound,
    master_imbalance,
    oom,
    oom_risk,
    review,
)
from dpwatch.run.model.snapshot import Balance, MemoryUse
from dpwatch.run.state.run_state import RunState
from tests.frames import START_NS, ddp_run, dp_run, played


def run_of(frames):
    return summarize(played(frames))


def changed(run, **fields):
    return msgspec.structs.replace(run, **fields)


def with_rows(run, **fields):
    return changed(run, ranks=[msgspec.structs.replace(row, **fields) for row in run.ranks])


def test_master_imbalance_names_device_0_and_its_figures():
    finding = master_imbalance.rule(run_of(dp_run()))
    assert finding.severity == "warning"
    assert finding.ranks == [0]
    assert finding.evidence["device0_peak_bytes"] == 5900
    assert finding.evidence["others_median_peak_bytes"] == 3200
    assert "3.0×" in finding.text
    assert "vgpu:0" in finding.text


def test_master_imbalance_is_silent_when_even_or_nearly():
    run = run_of(ddp_run())
    assert master_imbalance.rule(run) is None
    near = Balance(1.24, 1.24, 1.49)
    assert master_imbalance.rule(changed(run, balance=near)) is None
    assert master_imbalance.rule(changed(run, balance=Balance())) is None


def test_master_imbalance_by_traffic_alone_and_by_a_full_device():
    run = run_of(dp_run())
    traffic = changed(run, balance=Balance(None, None, 3.0))
    assert "peaks" not in master_imbalance.rule(traffic).text
    first = msgspec.structs.replace(
        run.ranks[0], memory=MemoryUse(peak_bytes=5900, capacity_bytes=6000)
    )
    full = changed(run, ranks=[first, *run.ranks[1:]])
    assert master_imbalance.rule(full).severity == "critical"


def test_master_imbalance_of_two_devices_omits_their_even_traffic():
    finding = master_imbalance.rule(run_of(dp_run(devices=2)))
    assert finding.evidence["traffic_device0_over_median"] == 1.0
    assert "traffic" not in finding.text


def test_gil_bound_needs_threads_of_one_process():
    assert gil_bound.rule(run_of(dp_run())).severity == "info"  # 8 % of the step
    assert gil_bound.rule(with_rows(run_of(dp_run()), gil_wait=0.2)).severity == "warning"
    assert gil_bound.rule(with_rows(run_of(dp_run()), gil_wait=0.04)) is None
    assert gil_bound.rule(with_rows(run_of(ddp_run()), gil_wait=0.2)) is None
    assert gil_bound.rule(with_rows(run_of(dp_run()), gil_wait=None)) is None


def test_cpu_oversubscribed_is_the_run_queue():
    finding = cpu_oversubscribed.rule(run_of(dp_run()))  # 30 % of the step
    assert finding.severity == "warning"
    assert finding.evidence["cores"] == 2
    assert "fewer ranks" in finding.text
    alone = run_of(dp_run(devices=1))
    assert "other processes" in cpu_oversubscribed.rule(alone).text
    assert cpu_oversubscribed.rule(with_rows(run_of(dp_run()), runqueue_wait=0.09)) is None
    assert cpu_oversubscribed.rule(with_rows(run_of(dp_run()), runqueue_wait=None)) is None


def test_a_diagnosis_keeps_its_first_step_and_outlasts_a_short_silence():
    state = played(dp_run(steps=12))
    run = summarize(state)
    held, silent = review(run, [], {}, state)
    began = {d.kind: d.since_step for d in held}
    assert began == dict.fromkeys(("master_imbalance", "gil_bound", "cpu_oversubscribed"), 12)
    held, silent = review(changed(run, steps=20), held, silent, state)
    assert {d.since_step for d in held} == {12}
    quiet = changed(
        with_rows(run, gil_wait=0.0, runqueue_wait=0.0), balance=Balance(), state="running"
    )
    for waited_ns in (0, PATIENCE_NS // 2, PATIENCE_NS - 1):
        state.now_ns = START_NS + waited_ns
        held, silent = review(quiet, held, silent, state)
        assert len(held) == 3
    state.now_ns = START_NS + PATIENCE_NS
    assert review(quiet, held, silent, state) == ([], {})


def test_a_finding_that_returns_in_time_is_no_longer_silent():
    state = played(dp_run(steps=12))
    run = summarize(state)
    held, silent = review(run, [], {}, state)
    quiet = changed(
        with_rows(run, gil_wait=0.0, runqueue_wait=0.0), balance=Balance(), state="running"
    )
    over = changed(quiet, state="finished")
    assert review(over, held, {}, state) == ([], {})
    held, silent = review(quiet, held, silent, state)
    assert set(silent) == {"master_imbalance", "gil_bound", "cpu_oversubscribed"}
    assert review(run, held, silent, state)[1] == {}


def test_rules_ignore_the_first_steps():
    assert review(run_of(dp_run(steps=2)), [], {}, played(dp_run(steps=2))) == ([], {})
    assert played(dp_run(steps=10)).diagnoses[0].kind in ("master_imbalance", "cpu_oversubscribed")
    assert RunState("run").diagnoses == []


MIB = 1 << 20


def filled(run, *peaks, capacity=100 * MIB, **categories):
    """The run with these peaks (MiB), split by the shares in `categories`."""
    rows = [
        msgspec.structs.replace(
            row,
            memory=MemoryUse(
                peak_bytes=peak * MIB,
                capacity_bytes=capacity,
                **{name: int(share * peak * MIB) for name, share in categories.items()},
            ),
        )
        for row, peak in zip(run.ranks, peaks, strict=True)
    ]
    return changed(run, ranks=rows, state="running")


def test_oom_risk_names_the_device_why_and_what_to_do():
    run = filled(run_of(dp_run()), 93, 40, 40, 40, activations=0.6, optimizer=0.4)
    finding = oom_risk.rule(run)
    assert (finding.kind, finding.severity, finding.ranks) == ("oom_risk", "warning", [0])
    assert finding.evidence["device"] == "vgpu:0"
    assert finding.evidence["share"] == 0.93
    assert finding.evidence["largest"] == "activations"
    assert "vgpu:0 peaks at 93.0 MiB, 93% of its 100 MiB" in finding.text
    assert "most of it activations (55.8 MiB)" in finding.text
    assert "device 0 gathers all logits" in finding.text
    assert "--activation-checkpointing" in finding.text


def test_oom_risk_of_all_devices_alike_blames_no_master():
    finding = oom_risk.rule(filled(run_of(ddp_run()), 98, 98, 98, 98, optimizer=0.5, params=0.25))
    assert (finding.severity, finding.ranks) == ("critical", [0, 1, 2, 3])
    assert "room" not in finding.text
    assert "zero1" in finding.text


def test_oom_risk_is_silent_below_without_figures_and_after_the_fact():
    run = run_of(ddp_run())
    assert oom_risk.rule(filled(run, 89, 89, 89, 89)) is None
    assert oom_risk.rule(filled(run, 99, 99, 99, 99, capacity=None)) is None
    assert oom_risk.rule(run) is None
    assert oom_risk.rule(changed(filled(run, 99, 99, 99, 99), state="failed")) is None


def test_oom_says_why_the_run_failed_from_the_first_step_on():
    told = "vgpu:1 out of memory. Tried to allocate 2.00 MiB. vgpu:1 has a total capacity of 4 MiB."
    run = changed(
        filled(run_of(ddp_run()), 50, 60, 50, 50, activations=0.9),
        state="failed",
        reason=f"rank 1: OutOfMemoryError: {told}",
        steps=0,
    )
    (diagnosis,), _ = review(run, [], {}, RunState("run"))
    assert (diagnosis.kind, diagnosis.severity, diagnosis.ranks) == ("oom", "critical", [1])
    assert diagnosis.text.startswith(told)
    assert "smaller batch" in diagnosis.text
    other = changed(run, reason="rank 1: RuntimeError: the cooling has failed")
    assert oom.rule(other) is None
    assert review(other, [], {}, RunState("run")) == ([], {})
    assert oom.rule(changed(run, state="running")) is None
