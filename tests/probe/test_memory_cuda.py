"""CUDA memory against a pretended allocator: nothing is reset, what is not known stays unknown."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dpwatch.probe import ledger, memory_cuda, memory_walk
from dpwatch.wire.messages import ByCategory, DeviceInfo, Memory

DEVICES = [DeviceInfo(name="cuda:1", kind="cuda"), DeviceInfo(name="cpu", kind="cpu")]


class FakeCuda:
    """Only what may be called; anything else, such as a reset, is an AttributeError."""

    def __init__(self, stats, *, initialized=True):
        self.stats, self.initialized, self.asked = stats, initialized, []

    def is_initialized(self):
        return self.initialized

    def memory_stats(self, device):
        self.asked.append(device)
        return self.stats


@pytest.fixture
def run(monkeypatch):
    """Steps the instrument `steps` times with these allocator statistics."""

    def run(stats, steps=1, **kwargs):
        cuda = FakeCuda(stats, **kwargs)
        fake_torch = SimpleNamespace(cuda=cuda, device=torch.device)
        monkeypatch.setattr(memory_cuda, "torch", fake_torch)
        records = []
        instrument = ledger.start(records.append, DEVICES)
        model = nn.Linear(4, 4)
        for step in range(steps):
            instrument.step_begin(step)
            with instrument.owner(0):
                instrument.enter_lane(0)
                instrument.exit_lane()
            instrument.step_end(step, [torch.optim.SGD(model.parameters())], [model])
        instrument.close()
        return records, cuda, instrument

    return run


FIGURES = {"allocated_bytes.all.current": 1000, "allocated_bytes.all.peak": 5000}


def test_the_allocators_own_figures_are_recorded(run):
    records, cuda, _ = run(FIGURES, steps=12)
    assert [record[2] for record in records][:2] == [1, 2]
    assert Memory(*records[0][1:]) == Memory(
        device=0, step=1, current_bytes=1000, peak_bytes=5000,
        current=ByCategory(), peak=ByCategory(), source="cuda",
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


def test_categories_come_from_walking_the_tensors_on_that_device():
    model = nn.Linear(8, 8)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    param_bytes = (64 + 8) * 4
    now, peak = memory_walk.kept_by_category([optimizer], [model], torch.device("cpu"))
    assert now == ByCategory(
        params=param_bytes, grads=param_bytes, optimizer=2 * param_bytes + 2 * 4
    )
    assert peak == ByCategory(params=param_bytes, optimizer=2 * param_bytes + 2 * 4)
    elsewhere = memory_walk.kept_by_category([optimizer], [model], torch.device("meta"))
    assert elsewhere == (ByCategory(), ByCategory())
