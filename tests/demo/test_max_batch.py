"""The search for the largest batch, on simulated devices and with real training."""

from __future__ import annotations

import pytest

from dpwatch.cli.max_batch import markdown, text
from dpwatch.demo.max_batch import Attempt, Found, MaxBatches, Tried, Trying, find_all, search
from dpwatch.trainer.config import TrainConfig
from dpwatch.trainer.messages import DeviceMemory

CAPACITY = 1000


def devices(*peaks: int) -> tuple[DeviceMemory, ...]:
    return tuple(DeviceMemory(f"vgpu:{i}", peak, CAPACITY) for i, peak in enumerate(peaks))


def searched(*demands):
    """Searches where device i needs `demands[i](batch)` bytes. Returns: the batches tried too."""
    tried = []

    def attempt(batch):
        tried.append(batch)
        needs = [demand(batch) for demand in demands]
        over = [f"vgpu:{i}" for i, need in enumerate(needs) if need > CAPACITY]
        return Attempt(memory=devices(*needs), oom_device=over[0] if over else "")

    config = TrainConfig(strategy="dp", gpus=len(demands), gpu_mem_bytes=CAPACITY)
    return search(config, attempt), tried


@pytest.mark.parametrize("largest", [1, 2, 3, 7, 12, 64, 333])
def test_it_ends_with_a_batch_that_fits_and_the_next_that_does_not(largest):
    per_sample = CAPACITY // largest if largest > 1 else 900
    per_sample = next(p for p in range(per_sample, 0, -1) if CAPACITY // p >= largest)
    found, tried = searched(lambda b: per_sample * b, lambda b: b)
    assert found.batch_per_gpu == CAPACITY // per_sample
    assert {found.batch_per_gpu, found.batch_per_gpu + 1} <= set(tried)
    assert (found.ran_out, found.tries) == ("vgpu:0", len(tried))
    assert len(tried) == len(set(tried)) < 20
    assert found.global_batch == 2 * found.batch_per_gpu
    assert found.devices[0].peak_bytes == per_sample * found.batch_per_gpu


def test_nonlinear_memory_costs_only_a_few_tries():
    found, tried = searched(lambda b: max(500 + b, 20 * b))
    assert found.batch_per_gpu == 50
    assert len(tried) <= 12


def test_a_strategy_that_fits_no_sample():
    found, tried = searched(lambda b: CAPACITY + b)
    assert (found.batch_per_gpu, found.global_batch, found.ran_out) == (0, 0, "vgpu:0")
    assert (found.devices, tried) == ([], [1])


def test_a_host_with_less_memory_ends_the_search_without_blaming_a_device():
    def attempt(batch):
        full = Attempt(oom_device=None)
        return full if batch > 5 else Attempt(memory=devices(batch))

    config = TrainConfig(strategy="ddp", gpus=1, gpu_mem_bytes=CAPACITY)
    found = search(config, attempt)
    assert (found.batch_per_gpu, found.ran_out) == (5, None)


def test_the_table_names_the_device_that_ran_out_but_not_one_of_many_alike():
    uneven, _ = searched(lambda b: 100 * b, lambda b: 20 * b, lambda b: 10 * b)
    even, _ = searched(lambda b: 100 * b, lambda b: 100 * b)
    none, _ = searched(lambda b: CAPACITY + b)
    found = MaxBatches("s", "v", 3, CAPACITY, "a model", [uneven, even, none])
    rows = text(found).splitlines()[3:]
    assert rows[0].split() == ["dp", "10", "30", "vgpu:0", "0.0", "0.0", "80%"]
    assert "all alike" in rows[1]
    assert rows[2].split() == ["dp", "none", "fits", "0", "vgpu:0", "–", "–", "–"]
    assert "| dp " in markdown(found)


@pytest.mark.dist
def test_dps_device_0_is_full_first_with_room_on_the_others(monkeypatch):
    monkeypatch.delenv("DPWATCH", raising=False)
    told = []
    size = {"seq_len": 16, "d_model": 16, "layers": 1, "heads": 1, "gpus": 3}
    config = TrainConfig(strategy="dp", gpu_mem_bytes=1 << 20, **size)
    found = find_all([config], told.append)
    (dp,) = found.strategies
    assert (found.schema, found.gpus, found.gpu_mem_bytes) == ("dpwatch.max_batch/1", 3, 1 << 20)
    assert dp.ran_out == "vgpu:0"
    kinds = [type(news) for news in told]
    assert kinds == [*[Trying, Tried] * dp.tries, Found]
    assert told[-1] == Found(0, dp)
    master, *others = (device.peak_bytes for device in dp.devices)
    assert others[0] == others[1] < master <= 1 << 20
