"""This host's GPUs, read from a fake NVML."""

import os
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from dpwatch.run.model.snapshot import GpuProcess, HostGpu
from dpwatch.viewer.host_gpus import HostGpus, _process, imbalance

GIB = 1 << 30


class NVMLError(Exception):
    pass


def nvml(used=(10 * GIB, 2 * GIB), broken=()):
    """A fake pynvml with one GPU per size; `broken` names the calls that fail."""

    def call(name, answer):
        def asked(*arguments):
            if name in broken:
                raise NVMLError(name)
            return answer(*arguments)

        return asked

    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: len(used),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: b"NVIDIA A100",
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=25 + 50 * handle),
        "nvmlDeviceGetPowerUsage": lambda handle: 250_500,
        "nvmlDeviceGetMemoryInfo": lambda h: SimpleNamespace(used=used[h], total=40 * GIB),
        "nvmlDeviceGetTemperature": lambda handle, sensor: 40 + handle,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=GIB)
        ],
    }  # fmt: skip
    calls = {name: call(name, answer) for name, answer in answers.items()}
    return SimpleNamespace(NVMLError=NVMLError, NVML_TEMPERATURE_GPU=0, **calls)


def test_every_gpu_is_read_with_figures_and_processes():
    first, second = HostGpus(nvml).read()
    assert second == msgspec.structs.replace(
        first, index=1, util=0.75, temperature_c=41.0, used_bytes=2 * GIB
    )
    assert first.name == "NVIDIA A100"
    assert (first.util, first.temperature_c, first.power_w) == (0.25, 40.0, 250.5)
    assert (first.used_bytes, first.capacity_bytes) == (10 * GIB, 40 * GIB)
    (process,) = first.processes
    assert (process.pid, process.used_bytes) == (os.getpid(), GIB)
    assert process.name == Path("/proc/self/comm").read_text().strip()


def test_values_that_nvml_lacks_are_unknown():
    silent = ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetMemoryInfo",
              "nvmlDeviceGetTemperature", "nvmlDeviceGetComputeRunningProcesses")  # fmt: skip
    first, _ = HostGpus(lambda: nvml(broken=silent)).read()
    assert first == HostGpu(0, "NVIDIA A100")
    assert HostGpus(lambda: nvml(broken=("nvmlDeviceGetHandleByIndex",))).read() == ()


def test_without_a_driver_there_are_no_gpus_and_no_retries():
    tried = []

    def load():
        tried.append(1)
        raise ImportError

    now = [0.0]
    gpus = HostGpus(load, clock=lambda: now[0])
    assert gpus.read() == ()
    now[0] = 10.0
    assert gpus.read() == ()
    assert tried == [1]
    assert HostGpus(lambda: nvml(broken=("nvmlInit",))).read() == ()


def test_gpus_are_read_once_a_second():
    sizes = [[GIB, GIB], [2 * GIB, GIB]]
    layer = nvml()
    layer.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(used=sizes[0][handle], total=1)
    now = [5.0]
    gpus = HostGpus(lambda: layer, clock=lambda: now[0])
    assert gpus.read()[0].used_bytes == GIB
    sizes.pop(0)
    now[0] = 5.9
    assert gpus.read()[0].used_bytes == GIB
    now[0] = 6.0
    assert gpus.read()[0].used_bytes == 2 * GIB


def holding(*gib):
    sizes = [None if each is None else int(each * GIB) for each in gib]
    return [HostGpu(i, "A100", used_bytes=size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("gib", "said"),
    [
        (
            (10, 2, 2, 2),
            "GPU 0 holds 10.0 GiB where the others hold 2.00 GiB: nn.DataParallel does",
        ),
        ((2, 2, 9, 2), "GPU 2 holds 9.00 GiB where the others hold 2.00 GiB"),
        ((2.9, 2, 2), ""),
        ((0.9, 0.1, 0.1), ""),  # far more, and little
        ((10,), ""),
        ((10, None), ""),
        ((), ""),
    ],
)
def test_a_gpu_that_holds_far_more_than_the_others_is_named(gib, said):
    told = imbalance(holding(*gib))
    assert told.startswith(said)
    assert bool(told) == bool(said)
    assert ("DataParallel" in told) == ("DataParallel" in said)


def test_a_process_is_known_by_its_pid_at_least():
    gone = SimpleNamespace(pid=2**22 + 1, usedGpuMemory=None)
    assert _process(gone) == GpuProcess(2**22 + 1, "")
