"""Phases on a simulated CUDA device, whose work is done when the test says so."""

from __future__ import annotations

import inspect
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dpwatch.probe.steps import cuda_events as device_times
from dpwatch.probe.steps.cuda_events import KEPT_STEPS, MOST_SPANS, CudaEvents, DeviceTimes
from dpwatch.probe.steps.lanes import BACKWARD, DATA, FORWARD, OPTIMIZER
from dpwatch.probe.steps.sampling import pair_of
from dpwatch.probe.steps.step_record import UNKNOWN_PHASES
from dpwatch.wire.messages import DeviceInfo, Step

MS = 1_000_000
CUDA = [DeviceInfo("cuda:0", "cuda")]


class Device:
    """A stream: `queued_ms` of work were queued, `done_ms` of it are done."""

    def __init__(self):
        self.queued_ms = self.done_ms = 0.0
        self.made = self.asked = 0
        self.capturing = False
        self.broken = ""
        self.threads = set()

    def work(self, ms):
        self.queued_ms += ms

    def catch_up(self):
        self.done_ms = self.queued_ms

    # -- as an EventLayer

    def usable(self):
        return not self.capturing

    def make(self):
        self.made += 1
        return Event(self)

    def record(self, event):
        assert not self.capturing
        if self.broken == "record":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        event.at_ms = self.queued_ms


class Event:
    """Has only what may be called, and nothing that waits; asking too early raises, as in CUDA."""

    def __init__(self, device):
        self.device = device
        self.at_ms = None

    def query(self):
        device = self.device
        device.asked += 1
        device.threads.add(threading.get_ident())
        assert not device.capturing
        if device.broken == "query":
            raise RuntimeError("CUDA error: unspecified launch failure")
        return self.at_ms <= device.done_ms

    def elapsed_time(self, end):
        assert self.at_ms <= self.device.done_ms
        assert end.at_ms <= self.device.done_ms
        return end.at_ms - self.at_ms


class Queued(nn.Module):
    """Queues a forward and a backward; the host spends a millisecond on each."""

    def __init__(self, device, run):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.device, self.run = device, run

    def forward(self, x):
        self._queue(40)
        out = self.linear(x)
        if out.requires_grad:
            out.register_hook(lambda grad: self._queue(80))
        return out

    def _queue(self, ms):
        self.run(1 * MS)
        self.device.work(ms)


class QueuedSGD(torch.optim.SGD):
    def __init__(self, model):
        super().__init__(model.parameters(), lr=0.1)
        self.model = model

    @torch.no_grad()
    def step(self, closure=None):
        self.model._queue(10)
        return super().step(closure)


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(device_times, "CudaEvents", lambda place: device)
    return device


@pytest.fixture
def run(rig, device, make_probe, monkeypatch):
    """Trains that many steps, each followed by `after(step)`; returns the rig."""
    rig.probe.close()  # first, so that it can put everything back
    rig.link.frames.clear()
    rig.probe = make_probe(clocks=rig.clocks, link=rig.link, devices=CUDA)
    model = Queued(device, rig.clocks.run)
    optimizer = QueuedSGD(model)

    def run(steps, *, after=lambda step: device.catch_up(), host_ms=60, batches=1):
        for step in range(steps):
            for _ in range(batches):
                model(torch.ones(2, 3)).mean().backward()
            rig.clocks.run(host_ms * MS)
            optimizer.step()
            after(step)
        return rig

    return run


def phases(step):
    return step.data_ns, step.h2d_ns, step.forward_ns, step.backward_ns, step.optimizer_ns


KNOWN = (None, None, 40 * MS, 80 * MS, 10 * MS)
UNKNOWN = (None,) * 5


# -- through the whole probe ----------------------------------------------------------------------


def test_the_devices_times_replace_the_hosts(run, device):
    steps = run(4).records(Step)
    assert [s.step for s in steps] == [0, 1, 2, 3]
    assert {phases(s) for s in steps} == {KNOWN}
    assert steps[1].end_ns - steps[1].start_ns == 63 * MS  # the step itself is the host's
    assert device.threads == {threading.get_ident()}


def test_accumulated_batches_add_up(run):
    steps = run(2, batches=3).records(Step)
    assert {phases(s) for s in steps} == {(None, None, 120 * MS, 240 * MS, 10 * MS)}


def test_waiting_for_data_is_host_time(rig, run, device):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            rig.clocks.run(7 * MS)
            return torch.ones(3)

    for _ in torch.utils.data.DataLoader(Rows()):
        run(1)
    assert [s.data_ns for s in rig.records(Step)] == [7 * MS, 7 * MS]


def test_a_step_is_recorded_once_its_events_complete(run, device, rig):
    run(3, after=lambda step: None)
    held = rig.probe.steps.main.on_device._held
    assert [each.record[2] for each in held] == [0, 1, 2]
    device.catch_up()
    run(1, after=lambda step: None)
    assert [each.record[2] for each in held] == [3]
    steps = rig.records(Step)
    assert [phases(s) for s in steps] == [KNOWN, KNOWN, KNOWN, UNKNOWN]


def test_events_that_never_complete_are_dropped(run, device, rig):
    run(KEPT_STEPS + 20, after=lambda step: None)
    assert len(rig.probe.steps.main.on_device._held) == KEPT_STEPS
    assert device.made <= (KEPT_STEPS + 2) * 6
    device.catch_up()
    steps = rig.records(Step)
    assert [s.step for s in steps] == list(range(KEPT_STEPS + 20))
    assert {phases(s) for s in steps[:20]} == {UNKNOWN}
    assert {phases(s) for s in steps[20:]} == {KNOWN}


def test_events_are_reused(run, device):
    run(50)
    assert device.made <= 2 * 6


def test_short_steps_are_timed_now_and_then(run, device):
    steps = run(40, host_ms=26).records(Step)
    timed = [s.step for s in steps if phases(s) != UNKNOWN]
    assert timed == [0, *(pair_of(block) + 1 for block in range(4))]
    assert {phases(s) for s in steps if s.step in timed} == {KNOWN}


def test_no_events_are_used_during_a_graph_capture(run, device, rig):
    run(2)
    device.capturing = True
    asked = device.asked
    run(2)
    assert device.asked == asked
    device.capturing = False
    run(1)
    steps = rig.records(Step)
    assert [phases(s) for s in steps] == [KNOWN, KNOWN, UNKNOWN, UNKNOWN, KNOWN]


@pytest.mark.parametrize("broken", ["record", "query"])
def test_a_cuda_error_ends_device_timing_only(run, device, rig, broken, capsys):
    run(2)
    device.broken = broken
    run(3)
    times = rig.probe.steps.main.on_device
    assert times.note.startswith("RuntimeError: CUDA error")
    asked, made = device.asked, device.made
    device.broken = ""
    run(2)
    assert (device.asked, device.made) == (asked, made)
    steps = rig.records(Step)
    assert [s.step for s in steps] == list(range(7))
    assert phases(steps[0]) == KNOWN
    assert {phases(s) for s in steps[2:]} == {UNKNOWN}
    assert capsys.readouterr().err == ""


def test_a_phase_interrupted_by_an_exception_is_unknown(run, device, rig):
    def fails():
        raise ValueError("torn")

    run(1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="torn"):
        optimizer.step(fails)
    run(2)
    steps = rig.records(Step)
    assert [phases(s) for s in steps] == [KNOWN, UNKNOWN, KNOWN]


def test_a_phase_whose_thread_went_to_another_device_is_unknown(run, device, rig):
    with rig.probe.phase("forward"), rig.probe.lane(1):
        rig.clocks.run(5 * MS)
    run(1)
    own, other = sorted(rig.records(Step), key=lambda s: s.device)
    assert phases(own) == (None, None, None, 80 * MS, 10 * MS)
    assert phases(other) == UNKNOWN


def test_closing_from_another_thread_queries_no_events(run, device, rig):
    run(1)
    asked = device.asked
    closer = threading.Thread(target=rig.probe.close)
    closer.start()
    closer.join()
    assert device.asked == asked
    assert [phases(s) for s in rig.link.records(Step)] == [UNKNOWN]


def test_a_forked_child_queries_no_events(run, device, rig, monkeypatch):
    monkeypatch.setattr(device_times, "_parents", [])
    run(1)
    asked = device.asked
    rig.probe.forked()
    assert device.asked == asked
    assert rig.probe.steps.main.on_device is None
    (kept,) = device_times._parents
    assert kept._pool or kept._held  # its events are not destroyed either
    rig.probe._over = False  # no child, really: its sender has to be ended


def test_on_the_host_there_are_no_events(rig, device):
    assert device_times.start(lambda record: None, [DeviceInfo("cpu", "cpu")]) is None
    assert device_times.start(lambda record: None, []) is None
    assert device_times.start(lambda record: None, [DeviceInfo("my GPU", "cuda")]) is None
    assert rig.probe.steps.main.on_device is None


def test_the_first_step_of_a_cuda_model_has_no_host_phases(rig, monkeypatch):
    monkeypatch.setattr(rig.probe.steps, "_kernels_are_queued", lambda: True)
    model = Queued(Device(), rig.clocks.run)
    model(torch.ones(2, 3)).mean().backward()
    QueuedSGD(model).step()
    assert [phases(s) for s in rig.records(Step)] == [UNKNOWN]


# -- the instrument by itself ---------------------------------------------------------------------


def test_more_phases_than_are_timed_are_unknown():
    device, told = Device(), []
    times = DeviceTimes(told.append, device)
    for _ in range(MOST_SPANS + 1):
        times.phase_begins(FORWARD)
        device.work(1)
        times.phase_ends(FORWARD)
    times.phase_begins(OPTIMIZER)
    times.phase_ends(OPTIMIZER)
    times.step_ends(("step",))
    device.catch_up()
    times.close(ask=True)
    assert told == [("step", list(UNKNOWN_PHASES))]


def test_an_end_without_a_beginning_is_unknown():
    device, told = Device(), []
    times = DeviceTimes(told.append, device)
    times.phase_ends(FORWARD)
    times.phase_begins(BACKWARD)
    times.phase_begins(OPTIMIZER)
    times.phase_ends(OPTIMIZER)
    times.step_ends(("step",))
    times.close(ask=True)
    (record,) = told
    assert record[1][DATA] is None
    assert record[1][FORWARD : BACKWARD + 1] == [None, None]
    assert record[1][OPTIMIZER] == 0


class FakeCuda:
    """Only what may be called of `torch.cuda`: nothing here synchronizes or initializes."""

    def __init__(self):
        self.initialized, self.capturing, self.streams = True, False, []

    def is_initialized(self):
        return self.initialized

    def is_current_stream_capturing(self):
        assert self.initialized
        return self.capturing

    def current_stream(self, device):
        return f"stream of {device}"

    def Event(self, *, enable_timing):
        assert enable_timing
        return SimpleNamespace(record=self.streams.append)


def test_events_go_onto_the_devices_current_stream(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(device_times, "torch", SimpleNamespace(cuda=cuda))
    events = CudaEvents(torch.device("cuda:1"))
    assert events.usable() is True
    events.record(events.make())
    assert cuda.streams == ["stream of cuda:1"]
    cuda.capturing = True
    assert events.usable() is False
    cuda.initialized = False
    assert events.usable() is False


def test_this_torch_has_the_cuda_events_api():
    assert not CudaEvents(torch.device("cuda:0")).usable() or torch.cuda.is_initialized()
    assert "enable_timing" in inspect.signature(torch.cuda.Event.__new__).parameters
    assert list(inspect.signature(torch.cuda.Event.record).parameters) == ["self", "stream"]
    assert {"query", "elapsed_time"} <= set(dir(torch.cuda.Event))
    assert callable(torch.cuda.is_current_stream_capturing)
    assert "device" in inspect.signature(torch.cuda.current_stream).parameters
