"""Gauges: CUDA's against a fake allocator, the host's against the operating system."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dpwatch.probe.memory import gauges as memory_gauges
from dpwatch.probe.memory import ledger
from dpwatch.probe.memory import resident as memory_resident
from dpwatch.probe.memory.gauges import CudaGauge, HostGauge, Totals, gauges_of
from dpwatch.probe.memory.passive import PassiveMemory
from dpwatch.wire.messages import ByCategory, DeviceInfo, Memory

CUDA = DeviceInfo(name="cuda:1", kind="cuda")
HOST = DeviceInfo(name="cpu", kind="cpu")
FIGURES = {"allocated_bytes.all.current": 1000, "allocated_bytes.all.peak": 5000}


class FakeCuda:
    """Only what may be called; anything else, such as a reset, raises AttributeError."""

    def __init__(self, stats, *, initialized=True):
        self.stats, self.initialized, self.asked = stats, initialized, []

    def is_initialized(self):
        return self.initialized

    def current_device(self):
        return 1

    def memory_stats(self, device):
        self.asked.append(device)
        return self.stats


@pytest.fixture
def run(monkeypatch):
    """Steps the instrument `steps` times with these allocator statistics."""

    def run(stats, steps=1, **kwargs):
        cuda = FakeCuda(stats, **kwargs)
        fake_torch = SimpleNamespace(cuda=cuda, device=torch.device)
        monkeypatch.setattr(memory_gauges, "torch", fake_torch)
        records = []
        instrument = ledger.start(records.append, [CUDA, HOST])
        instrument.pace.due = lambda step: step > 0
        model = nn.Linear(4, 4)
        for step in range(steps):
            instrument.step_begin(step)
            with instrument.owner(0):
                instrument.enter_lane(0)
                instrument.exit_lane()
            instrument.before_forward()
            instrument.before_backward()
            instrument.step_end(step, [torch.optim.SGD(model.parameters())], [model])
        instrument.close()
        return records, cuda, instrument

    return run


def test_the_allocators_own_figures_are_recorded(run):
    records, cuda, _ = run(FIGURES, steps=3)
    assert [record[2] for record in records] == [1, 2]
    assert Memory(*records[0][1:]) == Memory(
        device=0, step=1, current_bytes=1000, peak_bytes=5000,
        current=ByCategory(), peak=ByCategory(), source="cuda", activations_estimate=0,
    )  # fmt: skip
    assert set(cuda.asked) == {torch.device("cuda:1")}


def test_nothing_is_recorded_before_cuda_is_in_use(run):
    records, cuda, _ = run(FIGURES, steps=3, initialized=False)
    assert records == []
    assert cuda.asked == []


def test_an_allocator_without_figures_gives_no_record(run):
    records, _, instrument = run({}, steps=3)
    assert records == []
    assert instrument.note == "closed"


def test_a_driver_error_ends_reading_quietly(run):
    records, _, instrument = run(None, steps=12)
    assert records == []
    assert instrument.note.startswith("TypeError")


def test_a_process_of_an_unknown_device_uses_cuda_if_it_has_begun_to(monkeypatch):
    cuda = FakeCuda(FIGURES)
    monkeypatch.setattr(memory_gauges, "torch", SimpleNamespace(cuda=cuda, device=torch.device))
    gauge = memory_gauges.default_gauge()
    assert (gauge.device, gauge.totals()) == (torch.device("cuda:1"), Totals(1000, 5000))
    cuda.initialized = False
    assert memory_gauges.default_gauge().device == torch.device("cpu")


def test_which_devices_are_read():
    (gauge,) = gauges_of([HOST]).values()
    assert isinstance(gauge, HostGauge)
    both = gauges_of([HOST, CUDA])
    assert list(both) == [1]
    assert isinstance(both[1], CudaGauge)
    assert gauges_of([HOST, HOST]) == {}  # the process's figures are neither's


# -- the host -------------------------------------------------------------------------------------


def test_resident_sizes_are_the_operating_systems():
    with open("/proc/self/status") as status:
        told = dict(line.split(":", 1) for line in status)
    peak, now = (int(told[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS"))
    totals = HostGauge().totals()
    assert totals.peak == pytest.approx(peak, rel=0.02)
    assert totals.current == pytest.approx(now, rel=0.02)
    assert totals.peak >= totals.current > totals.heap


def test_the_peak_is_this_programs_and_not_its_parents():
    """A process that was large and then execs another program is small again."""
    code = "from dpwatch.probe.memory import resident; print(resident.resident().peak)"
    became = f"os.execv(sys.executable, [sys.executable, '-c', {code!r}])"
    before = f"import os, sys; x = b'x' * (64 << 20); {became}"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run([sys.executable, "-c", before], env=env, capture_output=True, check=True)
    assert int(told.stdout) < 64 << 20


def test_without_proc_resident_size_is_unknown(monkeypatch):
    monkeypatch.setattr(memory_resident, "_read", lambda path: None)
    assert memory_resident.resident().now is None
    assert memory_resident.resident().peak > 0  # the kernel's own account of the process
    records = []
    instrument = PassiveMemory(records.append, [HOST])
    instrument.step_begin(1)
    instrument.step_end(1, [], [])
    assert records == []
    assert instrument.note == ""
