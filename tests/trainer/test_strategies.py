"""A strategy computes what one device computes, and dp's bytes are those of theory."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter
from contextlib import closing

import pytest
import torch

from dpwatch.plan.schemes import scheme
from dpwatch.trainer import registry
from dpwatch.trainer.data import loader
from dpwatch.trainer.footprint import setup
from dpwatch.trainer.loop import train
from dpwatch.trainer.rank_place import RankPlace, find_rank_place
from dpwatch.trainer.strategies import build, dp
from dpwatch.trainer.virtual import DeviceThreads, buckets

from .support import RecordingProbe, tiny

ONE_PROCESS = [
    spec.name for spec in registry.all_specs() if not spec.distributed and spec.name != "single"
]


def virtual(config) -> RankPlace:
    cpu = torch.device("cpu")
    return RankPlace(rank=0, world_size=1, devices=(cpu,) * config.devices, virtual=True)


def trained(config, probe):
    with closing(build(config, virtual(config), probe)) as strategy:
        losses = [strategy.step(tokens).item() for tokens in loader(config, rank=0, ranks=1)]
        return losses, {name: value.clone() for name, value in strategy.parameters().items()}


def test_dp_is_the_same_every_time(probe):
    first, again = (trained(tiny("dp", gpus=3), probe) for _ in range(2))
    assert first[0] == again[0]


@pytest.mark.parametrize("gpus", [2, 4])
@pytest.mark.parametrize("grad_accum", [1, 2])
@pytest.mark.parametrize("strategy", ONE_PROCESS)
def test_copies_are_what_theory_says(strategy, gpus, grad_accum, probe):
    config = tiny(strategy, gpus=gpus, grad_accum=grad_accum, steps=2)
    trained(config, probe)
    sent = Counter()
    for kind, src, dst, nbytes in probe.transfers:
        sent[kind, src, dst] += nbytes
    planned = scheme(strategy).copies(setup(config))
    assert sent == {(c.kind, c.src, c.dst): config.steps * c.nbytes for c in planned}


def test_dp_tells_the_probe_which_device_works(probe):
    config = tiny("dp", gpus=3, steps=1)
    trained(config, probe)
    assert sorted(probe.sampled) == [(0, 2), (1, 2), (2, 2)]
    assert sorted(set(probe.phases)) == [(d, p) for d in range(3) for p in ("backward", "forward")]
    assert set(probe.owners) == {0, 1, 2}
    assert probe.waits == 2


def test_dps_reduction_in_buckets_sends_the_same(probe, monkeypatch):
    config = tiny("dp", gpus=2, steps=3)
    losses, _ = trained(config, probe)
    monkeypatch.setattr(dp, "REDUCE_BUCKET_BYTES", 5000)
    small = RecordingProbe()
    assert trained(config, small)[0] == losses
    sums = [sum(t[3] for t in p.transfers if t[0] == "reduce") for p in (probe, small)]
    assert sums[0] == sums[1]
    assert len(small.transfers) > len(probe.transfers)


def test_buckets_keep_order_and_limit():
    tensors = [torch.zeros(n) for n in (3, 3, 9, 1, 1)]
    sizes = [[len(tensor) for tensor in group] for group in buckets(tensors, 24)]
    assert sizes == [[3, 3], [9], [1, 1]]
    assert list(buckets([], 24)) == []


def test_no_replica_outlives_its_step(probe, monkeypatch):
    config = tiny("dp", gpus=3)
    seen = []
    copy_to = dp.copy_to

    def watched(*arguments):
        copies = copy_to(*arguments)
        seen.extend(weakref.ref(copy.untyped_storage()) for copy in copies)
        return copies

    monkeypatch.setattr(dp, "copy_to", watched)
    strategy = build(config, virtual(config), probe)
    held_at_update = []
    with closing(strategy):
        update = strategy._optimizer.step
        strategy._optimizer.step = lambda: (
            held_at_update.append(sum(ref() is not None for ref in seen)),
            update(),
        )
        gc.disable()
        try:
            for tokens in list(loader(config, rank=0, ranks=1))[:2]:
                strategy.step(tokens)
        finally:
            gc.enable()
    assert seen
    assert held_at_update == [0, 0]


def test_an_error_in_a_device_thread_surfaces_once_all_have_ended(probe):
    ended = []

    def job(device):
        ended.append(device)
        if device == 2:
            raise RuntimeError("device 2")

    with DeviceThreads(4, probe) as threads:
        with pytest.raises(RuntimeError, match="device 2"):
            threads.run("forward", job)
        assert sorted(ended) == [0, 1, 2, 3]
        assert threads.run("forward", lambda device: device) == [0, 1, 2, 3]


def test_an_error_on_device_0_waits_for_the_others(probe):
    ended = []
    gate = threading.Event()

    def job(device):
        if device == 0:
            gate.set()
            raise RuntimeError("device 0")
        gate.wait()
        ended.append(device)

    with DeviceThreads(3, probe) as threads:
        with pytest.raises(RuntimeError, match="device 0"):
            threads.run("forward", job)
        assert sorted(ended) == [1, 2]


def test_closing_ends_the_device_threads(probe):
    config = tiny("dp", gpus=4, steps=1)
    before = set(threading.enumerate())
    trained(config, probe)
    assert set(threading.enumerate()) == before


def test_the_loop_reports_progress_and_stops_between_steps(probe):
    config = tiny("single", gpus=1, steps=None)
    told = []
    asked = iter([False, False, True])
    done = train(
        config,
        virtual(config),
        probe,
        progress=lambda *facts: told.append(facts),
        stopping=lambda: next(asked),
    )
    assert done == 3
    assert told[0][0] == 1
    assert probe.sampled == [(0, 2)] * 3


def test_devices_are_virtual_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tiny("ddp", gpus=4, gpu_mem_bytes=1 << 30)
    place = find_rank_place(config, rank=2, world_size=4, local_rank=2, local_ranks=4)
    assert place.virtual
    (device,) = place.describe(config)
    assert (device.name, device.kind, device.capacity_bytes) == ("vgpu:2", "virtual", 1 << 30)
    dp_config = tiny("dp", gpus=3)
    place = find_rank_place(dp_config, rank=0, world_size=1, local_rank=0, local_ranks=1)
    assert [d.name for d in place.describe(dp_config)] == ["vgpu:0", "vgpu:1", "vgpu:2"]
