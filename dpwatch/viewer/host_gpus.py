"""Reads this host's GPUs and the processes that use them from NVML, for viewers.

Without a driver there are no GPUs, and no error. Values that NVML lacks are None.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dpwatch.quantiles import median
from dpwatch.run.model.snapshot import GpuProcess, HostGpu
from dpwatch.units import size

EVERY_S = 1.0
FAR_MORE = 1.5
LEAST_MORE_BYTES = 1 << 30

_T = TypeVar("_T")


class HostGpus:
    """Reads the GPUs at most once a second. Use it from one thread.

    Args:
        load: Returns `pynvml` or a substitute; may raise.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        load: Callable[[], Any] = lambda: importlib.import_module("pynvml"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._clock = clock
        self._nvml: Any = None
        self._tried = False
        self._read_at = -EVERY_S
        self._found: tuple[HostGpu, ...] = ()

    def read(self) -> tuple[HostGpu, ...]:
        """All GPUs, empty without a driver."""
        if self._clock() - self._read_at >= EVERY_S:
            self._read_at = self._clock()
            self._found = self._query()
        return self._found

    def _query(self) -> tuple[HostGpu, ...]:
        if not self._tried:
            self._tried = True
            with contextlib.suppress(Exception):  # no package, no library, no driver
                nvml = self._load()
                nvml.nvmlInit()
                self._nvml = nvml
        if self._nvml is None:
            return ()
        count = self._call(self._nvml.nvmlDeviceGetCount) or 0
        return tuple(gpu for index in range(count) if (gpu := self._gpu(index)) is not None)

    def _gpu(self, index: int) -> HostGpu | None:
        nvml, ask = self._nvml, self._call
        handle = ask(lambda: nvml.nvmlDeviceGetHandleByIndex(index))
        if handle is None:
            return None
        name = ask(lambda: nvml.nvmlDeviceGetName(handle)) or ""
        rates = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        milliwatts = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        celsius = ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        processes = ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
        return HostGpu(
            index=index,
            name=name.decode(errors="replace") if isinstance(name, bytes) else str(name),
            util=None if rates is None else rates.gpu / 100,
            temperature_c=None if celsius is None else float(celsius),
            power_w=None if milliwatts is None else milliwatts / 1000,
            used_bytes=None if memory is None else int(memory.used),
            capacity_bytes=None if memory is None else int(memory.total),
            processes=tuple(_process(each) for each in processes),
        )

    def _call(self, question: Callable[[], _T]) -> _T | None:
        try:
            return question()
        except self._nvml.NVMLError:
            return None


def imbalance(gpus: Sequence[HostGpu]) -> str:
    """A sentence if one GPU holds far more memory than the others, else ""."""
    used = [gpu.used_bytes for gpu in gpus]
    if len(gpus) < 2 or None in used:
        return ""
    fullest = max(gpus, key=lambda gpu: gpu.used_bytes or 0)
    most = fullest.used_bytes or 0
    rest = median(gpu.used_bytes for gpu in gpus if gpu is not fullest) or 0.0
    if most < FAR_MORE * rest or most - rest < LEAST_MORE_BYTES:
        return ""
    hint = (
        ": nn.DataParallel does that, which gathers on one device"
        if fullest.index == min(gpu.index for gpu in gpus)
        else ""
    )
    return f"GPU {fullest.index} holds {size(most)} where the others hold {size(rest)}{hint}"


def _process(nvml_process: Any) -> GpuProcess:
    used = getattr(nvml_process, "usedGpuMemory", None)
    name = ""
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{nvml_process.pid}/comm").read_text(errors="replace").strip()
    return GpuProcess(int(nvml_process.pid), name, None if used is None else int(used))
