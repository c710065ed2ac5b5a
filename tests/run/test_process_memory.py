"""Resident sizes and malloc's figures in a run's state, and what is derived from them."""

import pytest

from dpwatch.cli.output import table
from dpwatch.hub.cluster.merge import _keep_lane
from dpwatch.run.derive.predicted_memory import elsewhere
from dpwatch.run.derive.summarize import summarize
from dpwatch.run.state.apply import apply
from dpwatch.run.state.parts import LaneState
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import Beat, ByCategory, Memory
from tests.frames import batch, hello, memory, step

MIB = 1 << 20


def resident(index, peak, *, heap=None, estimate=None, error=None, device=0):
    kept = ByCategory(params=MIB, grads=MIB, optimizer=2 * MIB, buffers=0)
    peaks = ByCategory(params=MIB, optimizer=2 * MIB, buffers=0)
    return Memory(device, index, peak, peak, kept, peaks, "rss", estimate, error, heap)


def run_of(*peaks, record=resident):
    """A run with one rank per peak, in MiB."""
    state = RunState("run")
    for rank, peak in enumerate(peaks):
        apply(
            state,
            batch(hello(len(peaks), param_bytes=MIB), step(0), record(0, peak * MIB), rank=rank),
        )
    return state


def lane_of(*records):
    state = RunState("run")
    apply(state, batch(hello(), *records))
    return state.ranks[0].lanes[0], summarize(state).ranks[0].memory


def test_the_peak_is_the_processs_and_has_only_persistent_categories():
    _, use = lane_of(resident(1, 400 * MIB, heap=90 * MIB, estimate=5 * MIB, error=MIB))
    assert (use.source, use.peak_of, use.heap_bytes) == ("rss", "process", 90 * MIB)
    assert (use.activations_estimate, use.activations_error) == (5 * MIB, MIB)
    assert use.activations is use.grads is use.temp is None
    assert use.at_step_end.grads == MIB
    _, use = lane_of(memory(1, 400 * MIB))
    assert (use.source, use.peak_of, use.heap_bytes) == ("ledger", "step", None)


def test_a_beat_brings_the_peak_up_to_date():
    """Samples may be far apart, and the run continues after the last one."""
    state = run_of(400)
    apply(state, batch(Beat(3, "", peak_rss_bytes=450 * MIB), seq=1))
    assert summarize(state).ranks[0].memory.peak_bytes == 450 * MIB
    apply(state, batch(Beat(3, "", peak_rss_bytes=None), seq=2))
    assert summarize(state).ranks[0].memory.peak_bytes == 400 * MIB
    measured = run_of(40, record=memory)
    apply(measured, batch(Beat(3, "", peak_rss_bytes=450 * MIB), seq=1))
    assert summarize(measured).ranks[0].memory.peak_bytes == 40 * MIB


def test_held_memory_is_mallocs_figure_if_known():
    lane, _ = lane_of(resident(1, 400 * MIB, heap=90 * MIB), resident(2, 400 * MIB, heap=91 * MIB))
    assert lane.held_from == "heap"
    assert list(lane.held_bytes.values) == [90 * MIB, 91 * MIB]
    lane, _ = lane_of(resident(1, 400 * MIB))
    assert (lane.held_from, list(lane.held_bytes.values)) == ("rss", [400 * MIB])
    lane, _ = lane_of(memory(1, 40 * MIB))
    assert (lane.held_from, list(lane.held_bytes.values)) == ("ledger", [40 * MIB])


def test_figures_of_different_sources_are_not_one_curve():
    """A jump between sources would look like growth."""
    lane, use = lane_of(memory(1, 40 * MIB), resident(2, 400 * MIB))
    assert list(lane.held_bytes.values) == list(lane.peak_bytes.values) == [400 * MIB]
    assert (use.source, use.peak_bytes) == ("rss", 400 * MIB)
    lane, _ = lane_of(resident(1, 400 * MIB, heap=90 * MIB), resident(2, 400 * MIB))
    assert list(lane.held_bytes.values) == [400 * MIB]
    assert list(lane.peak_bytes.values) == [400 * MIB, 400 * MIB]


@pytest.mark.parametrize("known", [resident(1, 300 * MIB, heap=80 * MIB), memory(1, MIB)])
def test_merged_curves_have_one_source(known):
    before, _ = lane_of(known)
    after, _ = lane_of(resident(5, 400 * MIB, heap=90 * MIB))
    _keep_lane(before, after)
    same = known.source == "rss"
    assert list(after.held_bytes.values) == [80 * MIB] * same + [90 * MIB]
    assert (after.held_from, after.highest.peak_bytes) == ("heap", 400 * MIB)
    fresh = LaneState(0, 0)
    _keep_lane(before, fresh)
    assert fresh.held_from == before.held_from


@pytest.mark.parametrize("peaks", [(900, 400, 400, 400), (400, 900, 400, 400), (400, 400, 400)])
def test_resident_sizes_give_no_balance(peaks):
    """They include libraries and earlier allocations, so only differences are meaningful."""
    run = summarize(run_of(*peaks))
    assert run.balance.peak_max_over_min is run.balance.peak_device0_over_median is None
    assert "whole process" in table([run])
    measured = summarize(run_of(*peaks, record=memory))
    assert measured.balance.peak_max_over_min == max(peaks) / 400
    assert "whole process" not in table([measured])


def test_other_strategies_memory_is_predicted_from_optimizer_state():
    """The optimizer's state is exact even if memory is a resident size."""
    rows = elsewhere(summarize(run_of(400, 400)))
    assert next(row for row in rows if row.strategy == "ddp").first == 4 * MIB
