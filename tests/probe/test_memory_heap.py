"""malloc's statistics: exact with glibc, unknown with another malloc."""

import pytest
import torch

from dpwatch.probe.memory import heap as memory_heap
from dpwatch.probe.memory.heap import SLOW_NS, Heap

MIB = 1 << 20


@pytest.fixture
def heap():
    heap = Heap()
    if heap.in_use() is None:
        pytest.skip(heap.note)
    return heap


@pytest.mark.parametrize("nbytes", [MIB // 16, MIB, 40 * MIB])
def test_it_rises_and_falls_with_a_tensor(heap, nbytes):
    before = heap.in_use()
    tensor = torch.empty(nbytes, dtype=torch.uint8)
    assert heap.in_use() - before == pytest.approx(nbytes, abs=8192, rel=0.01)
    del tensor
    assert heap.in_use() - before == pytest.approx(0, abs=8192)


def test_a_slow_heap_call_is_the_last():
    spent = iter([0, 10, 20, 20 + SLOW_NS + 1])
    heap = Heap(cpu_ns=lambda: next(spent))
    assert heap.in_use() > 0
    assert heap.in_use() > 0
    assert heap.in_use() is None
    assert "fragmented" in heap.note


def test_another_malloc_is_detected(monkeypatch):
    """Its figures would not change, whatever torch allocates."""
    heap = Heap()
    monkeypatch.setattr(heap, "_read", lambda: 1000)
    assert heap.in_use() is None
    assert "malloc" in heap.note


def test_a_library_without_it_leaves_the_heap_unknown(monkeypatch):
    monkeypatch.setattr(memory_heap, "_find", lambda: None)
    heap = Heap()
    assert heap.in_use() is None
    assert "mallinfo2" in heap.note


def test_the_trial_allocation_is_not_profiled(heap):
    """An allocation of the probe's would be listed among the script's."""
    fresh = Heap()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        assert fresh.in_use() is None
        torch.empty(3 * MIB)
    sizes = {e.nbytes() for e in profiler.profiler.kineto_results.events() if e.nbytes()}
    assert memory_heap.TRIAL_BYTES not in sizes
    assert fresh.in_use() > 0  # once it is over
