"""A virtual device's memory: counted to the byte, limited to its capacity, otherwise unchanged."""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dpwatch.probe.api import NullProbe
from dpwatch.probe.memory.dispatch_mode import StorageTracker
from dpwatch.probe.memory.ledger import Ledger
from dpwatch.trainer.data import loader
from dpwatch.trainer.launch import launch
from dpwatch.trainer.memory_limit import limit_memory
from dpwatch.trainer.messages import RunEnded, RunProgress
from dpwatch.trainer.model import build_model
from dpwatch.trainer.rank_place import find_rank_place
from dpwatch.trainer.strategies import build
from dpwatch.trainer.virtual_memory import Books, amount
from dpwatch.wire.messages import DeviceInfo

from .support import Watched, tiny

PLENTY = 1 << 30
INT64_BYTES = 8


class Ran:
    """Events of a launch."""

    def __init__(self, server, config) -> None:
        self.events = []
        self.watched = None
        self.code = launch([config], on_event=self, server=server)
        (self.ended,) = (event for event in self.events if isinstance(event, RunEnded))

    def __call__(self, event):
        if self.watched is None and hasattr(event, "pids"):
            self.watched = Watched(list(event.pids))
        self.events.append(event)

    @property
    def losses(self):
        return [e.progress.loss for e in self.events if isinstance(e, RunProgress)][-1]

    @property
    def peaks(self):
        return {device.device: device.peak_bytes for device in self.ended.memory}


class LedgerProbe(NullProbe):
    """Passes calls to a ledger only."""

    def __init__(self, ledger):
        self.ledger = ledger

    @contextmanager
    def lane(self, device):
        self.ledger.enter_lane(device)
        yield
        self.ledger.exit_lane()

    def owns(self, device):
        return self.ledger.owner(device)


def test_books_name_the_device_and_count_nothing_refused():
    books = Books([DeviceInfo("vgpu:0", "virtual", 64 << 20), DeviceInfo("host", "host", None)])
    books.allocate(0, 60 << 20)
    books.allocate(1, 1 << 40)
    books.free(0, 10 << 20)
    with pytest.raises(torch.OutOfMemoryError) as refused:
        books.allocate(0, 15 << 20)
    assert str(refused.value) == (
        "vgpu:0 out of memory. Tried to allocate 15.00 MiB. vgpu:0 has a total capacity of "
        "64.00 MiB of which 14.00 MiB is free; 50.00 MiB is in use."
    )
    assert books.in_use() == [50 << 20, 1 << 40]
    assert [device.peak_bytes for device in books.report()] == [60 << 20, 1 << 40]
    assert books.oom_device == "vgpu:0"
    assert amount(700) == "700 bytes"


@pytest.fixture
def limit():
    config = tiny("single", gpu_mem_bytes=1 << 20)
    made = limit_memory(
        config, find_rank_place(config, rank=0, world_size=1, local_rank=0, local_ranks=1)
    )
    yield made
    made.close()


def test_frees_count_at_once_and_resized_storages_by_their_size(limit):
    books = limit._memory.books
    kept = torch.zeros(1000)
    for _ in range(100):
        torch.zeros(200_000)  # 0.8 of the capacity each
    assert books.in_use() == [4000]
    kept.untyped_storage().resize_(0)
    assert books.in_use() == [0]
    kept.untyped_storage().resize_(8000)
    assert books.in_use() == [8000]
    with pytest.raises(torch.OutOfMemoryError, match="vgpu:0 out of memory"):
        kept.untyped_storage().resize_(2 << 20)
    assert kept.untyped_storage().nbytes() == 8000
    del kept
    assert books.in_use() == [0]


def test_what_backward_allocates_counts_and_is_refused_there(limit):
    x = torch.ones(100_000, requires_grad=True)
    y = x * 2
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 390\.62 KiB"):
        torch.autograd.backward(y, torch.ones(100_000))
    assert limit.oom_device(torch.OutOfMemoryError()) == "vgpu:0"
    assert limit.oom_device(RuntimeError("another")) == ""


@pytest.mark.parametrize("strategy", ["single", "dp"])
def test_the_peak_is_the_ledgers_and_the_batch_in_host_memory(strategy):
    config = tiny(strategy, gpus=3, steps=3, gpu_mem_bytes=PLENTY)
    place = find_rank_place(config, rank=0, world_size=1, local_rank=0, local_ranks=1)
    limit = limit_memory(config, place)
    records = []
    ledger = Ledger(records.append, devices=len(place.devices))
    ledger.pace.due = lambda step: True
    made = build(config, place, limit.wrap_probe(LedgerProbe(ledger)))
    models = [m for m in vars(made).values() if isinstance(m, torch.nn.Module)][:1]
    optimizers = [o for o in vars(made).values() if isinstance(o, torch.optim.Optimizer)]
    for index, tokens in enumerate(loader(config, rank=0, ranks=1)):
        ledger.step_begin(index)
        made.step(tokens)
        ledger.step_end(index, optimizers, models)
    made.close()
    limit.close()
    assert ledger.note == ""
    peaks = [record[4] for record in records if record[2] == 2]
    window = INT64_BYTES * (config.seq_len + 1)
    peaks[0] += window * (config.batch + 1)  # the samples, and the loader's own positions
    assert [device.peak_bytes for device in limit.report()] == peaks


@pytest.fixture
def sampling():
    """A step that the probe's ledger tracks."""
    tracker = StorageTracker()
    tracker.push()
    tracker.begin()
    yield tracker
    tracker.end()
    tracker.pop()


@pytest.mark.parametrize("following", ["limit", "sampling"])
def test_fake_tensors_do_not_count(following, request):
    made = request.getfixturevalue(following)
    with FakeTensorMode():
        fake = torch.zeros(1 << 30).detach() + 1
    del fake
    if following == "limit":
        assert made._memory.books.in_use() == [0]
    else:
        assert made.events == []


def held_by_gloo(config):
    """Bytes of a DDP rank that a gloo thread may be the last to free, whenever it next runs.

    When DDP rebuilds its buckets after the first step: the old bucket, and two lists of 32-bit
    numbers that it broadcasts: each parameter's position (and a count), and the new bucket's size.
    """
    parameters = list(build_model(config).parameters())
    return sum(p.nbytes for p in parameters) + 4 * (len(parameters) + 1) + 4


@pytest.mark.dist
@pytest.mark.parametrize("strategy", ["single", "dp", "ddp"])
def test_an_exact_fit_trains_bit_identically_and_a_byte_less_fails(server, strategy):
    late = held_by_gloo(tiny(strategy)) if strategy == "ddp" else 0
    free = Ran(server, tiny(strategy))
    assert free.ended.memory == ()
    wide = Ran(server, tiny(strategy, gpu_mem_bytes=PLENTY))
    assert (wide.code, wide.losses) == (0, free.losses)
    assert list(wide.peaks) == [f"vgpu:{d}" for d in range(1 if strategy == "single" else 2)]
    need = max(wide.peaks.values())
    fits = Ran(server, tiny(strategy, gpu_mem_bytes=need + late))
    assert (fits.code, fits.losses) == (0, free.losses)
    assert fits.peaks == pytest.approx(wide.peaks, abs=late, rel=0)
    lacks = Ran(server, tiny(strategy, gpu_mem_bytes=need - late - 1))
    assert lacks.code == 1
    assert wide.peaks[lacks.ended.oom_device] >= need - late
    assert re.fullmatch(
        rf"rank [01]: OutOfMemoryError: {lacks.ended.oom_device} out of memory\. Tried to allocate "
        r"[\d.]+ \w+\. .* of which .* is free; .* is in use\.",
        lacks.ended.reason,
    )
    assert lacks.watched.all_end()


@pytest.mark.dist
@pytest.mark.parametrize("strategy", ["ps-cpu", "ddp-mp", "zero3", "fsdp"])
def test_every_kind_of_strategy_trains_the_same_under_a_limit(server, strategy):
    free = Ran(server, tiny(strategy, gpus=4, steps=3))
    limited = Ran(server, tiny(strategy, gpus=4, steps=3, gpu_mem_bytes=PLENTY))
    assert (limited.code, limited.losses) == (0, free.losses)
    devices = [device for device in limited.ended.memory if device.capacity_bytes]
    assert [device.device for device in devices] == [f"vgpu:{d}" for d in range(4)]
    assert all(device.peak_bytes > 0 for device in limited.ended.memory)


@pytest.mark.dist
def test_dps_device_0_runs_out_with_room_left_on_the_others(server):
    peaks = Ran(server, tiny("dp", gpus=3, batch_per_gpu=8, gpu_mem_bytes=PLENTY)).peaks
    assert peaks["vgpu:1"] == peaks["vgpu:2"] < peaks["vgpu:0"]
    capacity = (peaks["vgpu:0"] + peaks["vgpu:1"]) // 2
    ended = Ran(server, tiny("dp", gpus=3, batch_per_gpu=8, gpu_mem_bytes=capacity)).ended
    assert ended.oom_device == "vgpu:0"
    assert all(d.capacity_bytes == capacity >= d.peak_bytes for d in ended.memory)
