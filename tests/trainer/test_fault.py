"""Injected delays: errors in one line, and their effect, once per step in the right place."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from dpwatch.trainer import fault_injection, loop
from dpwatch.trainer.config import ConfigError
from dpwatch.trainer.fault import KINDS, Fault, parse_fault
from dpwatch.trainer.rank_place import RankPlace

from .support import RecordingProbe, tiny


def test_a_fault_is_kind_rank_and_milliseconds():
    assert parse_fault("forward:2:50") == Fault(kind="forward", rank=2, delay_ms=50.0)
    assert parse_fault("host:0:0.5").delay_ms == 0.5


@pytest.mark.parametrize(
    ("strategy", "text", "words"),
    [
        ("ddp", "gremlin:0:5", "unknown kind 'gremlin'; choose from: data, forward, backward"),
        ("ddp", "forward", "write KIND:RANK:MS, such as forward:2:50"),
        ("ddp", "forward:a:5", "write KIND:RANK:MS"),
        ("ddp", "forward:0:5:6", "write KIND:RANK:MS"),
        ("ddp", "forward:0:-5", "milliseconds above 0"),
        ("ddp", "forward:0:nan", "milliseconds above 0"),
        ("ddp", "forward:2:5", "ddp has no rank 2; give one from 0 to 1"),
        ("dp", "data:1:5", "dp is one process, and only its first device does data; give rank 0"),
    ],
)
def test_a_bad_fault_is_one_line(strategy, text, words):
    with pytest.raises(ConfigError) as refused:
        tiny(strategy, fault=text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


class Sleeps:
    """Replaces `time.sleep`: records the delay, its thread's device, and the phase."""

    def __init__(self, probe):
        self.probe = probe
        self.seen = []

    def __call__(self, seconds):
        inside_backward = torch._C._current_graph_task_id() != -1
        phase = "backward" if inside_backward else self.probe.phase_now
        self.seen.append((self.probe.device, phase, seconds))


class PhasedProbe(RecordingProbe):
    """Tracks the phases it is told."""

    phase_now = ""

    @contextmanager
    def phase(self, name):
        self.phase_now = name
        with super().phase(name):
            yield
        self.phase_now = ""


@pytest.fixture
def trained(monkeypatch):
    """Trains in this process; returns the recorded delays."""

    def train(config):
        probe = PhasedProbe()
        sleeps = Sleeps(probe)
        monkeypatch.setattr(fault_injection.time, "sleep", sleeps)
        device = torch.device("cpu")
        place = RankPlace(rank=0, world_size=1, devices=(device,) * config.devices, virtual=True)
        done = loop.train(config, place, probe, progress=lambda *told: None, stopping=lambda: False)
        assert done == config.steps
        return sleeps.seen, probe

    return train


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_is_delayed_once_in_its_phase(trained, kind):
    more = {"steps": 3, "grad_accum": 2, "activation_checkpointing": True}
    seen, probe = trained(tiny("single", **more, fault=f"{kind}:0:5"))
    phase = {"data": "data", "backward": "backward"}.get(kind, "")
    assert seen == [(0, phase, 0.005)] * 3
    assert probe.waits == 3


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_in_one_process_the_devices_thread_is_delayed(trained, kind):
    seen, _ = trained(tiny("dp", gpus=3, steps=2, fault=f"{kind}:2:5"))
    assert [(device, seconds) for device, _, seconds in seen] == [(2, 0.005)] * 2


def test_another_rank_is_not_delayed(monkeypatch):
    probe = RecordingProbe()
    place = RankPlace(rank=0, world_size=2, devices=(torch.device("cpu"),), virtual=True)
    monkeypatch.setattr(fault_injection.time, "sleep", None)
    with fault_injection.FaultInjector(tiny("ddp", fault="host:1:5"), place, probe) as made:
        assert made.probe is probe
        assert list(made.steps([1, 2])) == [1, 2]
