"""Parameter servers in this process: their order of operations, and where they are refused."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
import torch

from dpwatch.trainer.config import ConfigError
from dpwatch.trainer.data import loader
from dpwatch.trainer.rank_place import RankPlace
from dpwatch.trainer.strategies import build, check, servers

from .support import RecordingProbe, tiny

SERVERS = ["ps-gpu0", "ps-cpu", "ps-sharded"]


def place_of(config, *, virtual=True):
    cpu = torch.device("cpu")
    return RankPlace(rank=0, world_size=1, devices=(cpu,) * config.devices, virtual=virtual)


def trained(config, probe):
    with closing(build(config, place_of(config), probe)) as strategy:
        losses = [strategy.step(tokens).item() for tokens in loader(config, rank=0, ranks=1)]
        return losses, {name: value.clone() for name, value in strategy.parameters().items()}


@pytest.mark.parametrize("strategy", SERVERS)
def test_training_is_the_same_every_time(strategy, probe):
    """Whichever worker finishes first, gradients are added in a fixed order."""
    config = tiny(strategy, gpus=3)
    first, again = (trained(config, probe) for _ in range(2))
    assert first[0] == again[0]
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])


@pytest.mark.parametrize("strategy", SERVERS)
def test_buckets_of_any_size_send_the_same(strategy, probe, monkeypatch):
    config = tiny(strategy, gpus=3, steps=3)
    losses, _ = trained(config, probe)
    monkeypatch.setattr(servers, "PUSH_BUCKET_BYTES", 5000)
    small = RecordingProbe()
    assert trained(config, small)[0] == losses
    sums = [sum(t[3] for t in each.transfers if t[0] == "push") for each in (probe, small)]
    assert sums[0] == sums[1]
    assert len(small.transfers) > len(probe.transfers)


@pytest.mark.parametrize("strategy", SERVERS)
def test_the_probe_is_told_which_device_works(strategy, probe):
    config = tiny(strategy, gpus=3, steps=1, grad_accum=2)
    before = set(threading.enumerate())
    trained(config, probe)
    assert set(threading.enumerate()) == before
    assert sorted(probe.sampled) == [(device, 2) for device in range(3) for _ in range(2)]
    devices = {"ps-gpu0": 3, "ps-cpu": 4, "ps-sharded": 3}[strategy]
    assert {device for device, _ in probe.held} == set(range(devices))
    pushes = [dst for kind, _, dst, _ in probe.transfers if kind == "push"]
    updating = {"ps-gpu0": {0}, "ps-cpu": {3}, "ps-sharded": {0, 1, 2}}[strategy]
    assert set(pushes) == updating
    assert {device for device, phase in probe.phases if phase == "optimizer"} == updating


@pytest.mark.parametrize("strategy", SERVERS)
def test_cuda_devices_are_refused_in_one_line(strategy):
    config = tiny(strategy)
    with pytest.raises(ConfigError, match=f"^{strategy} supports virtual devices only.*ddp$"):
        check(config, place_of(config, virtual=False))
