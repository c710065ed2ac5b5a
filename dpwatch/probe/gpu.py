"""Reads GPUs through NVML: utilization, temperature, power and memory of the whole device.

Called on the probe's sender thread, about once a second. Without a driver, NVML or a GPU in use
there are no readings, silently; a value that NVML does not provide is None.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dpwatch.wire.messages import DeviceInfo, Gpu

_T = TypeVar("_T")


class GpuReader:
    """Reads the GPUs behind this process's CUDA devices.

    CUDA numbers devices in its own order and by `CUDA_VISIBLE_DEVICES`, NVML by PCI bus; the UUID
    matches the two.
    """

    def __init__(self, nvml: Any) -> None:
        """Takes an initialised `pynvml` (or what looks like it)."""
        self._nvml = nvml
        self._handles: dict[int, Any] = {}

    def read(self, devices: Sequence[DeviceInfo]) -> list[Gpu]:
        """Reads each CUDA device once.

        Args:
            devices: The rank's devices; those of kind `cuda`, named `cuda:N`, are read.

        Returns:
            A record for each that NVML knows.
        """
        readings = []
        for index, device in enumerate(devices):
            ordinal = _ordinal(device)
            handle = None if ordinal is None else self._handle(ordinal)
            if handle is not None:
                readings.append(self._reading(index, handle))
        return readings

    def _reading(self, index: int, handle: Any) -> Gpu:
        nvml, ask = self._nvml, self._ask
        rates = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        milliwatts = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        celsius = ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        return Gpu(
            device=index,
            util=None if rates is None else rates.gpu / 100,
            temperature_c=None if celsius is None else float(celsius),
            power_w=None if milliwatts is None else milliwatts / 1000,
            used_bytes=None if memory is None else int(memory.used),
            capacity_bytes=None if memory is None else int(memory.total),
        )

    def _handle(self, ordinal: int) -> Any:
        """NVML's handle of CUDA device `ordinal`, cached; None while it cannot be determined."""
        if ordinal not in self._handles:
            handle = self._find(ordinal)
            if handle is None:
                return None
            self._handles[ordinal] = handle
        return self._handles[ordinal]

    def _find(self, ordinal: int) -> Any:
        uuid = _cuda_uuid(ordinal) or _visible(ordinal)
        if uuid is None:
            return None
        if uuid.isdecimal():
            return self._ask(lambda: self._nvml.nvmlDeviceGetHandleByIndex(int(uuid)))
        return self._ask(lambda: self._nvml.nvmlDeviceGetHandleByUUID(uuid))

    def _ask(self, question: Callable[[], _T]) -> _T | None:
        try:
            return question()
        except self._nvml.NVMLError:
            return None


_reader: GpuReader | None = None
_tried = False


def poll(devices: Sequence[DeviceInfo] | None = None) -> list[Gpu]:
    """Reads this process's GPUs; loads NVML at its first use.

    Args:
        devices: The rank's devices; None means every visible CUDA device, once the process uses
            CUDA.

    Returns:
        One record per GPU, empty without any or without a driver.
    """
    devices = _cuda_devices() if devices is None else devices
    if not any(device.kind == "cuda" for device in devices):
        return []
    reader = _nvml_reader()
    return [] if reader is None else reader.read(devices)


def _nvml_reader() -> GpuReader | None:
    """The process's reader, None if NVML cannot be loaded (tried once)."""
    global _reader, _tried
    if not _tried:
        _tried = True
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
        except Exception:  # noqa: BLE001  (no package, no library, no driver: no GPUs)
            return None
        _reader = GpuReader(nvml)
    return _reader


def _cuda() -> Any:
    """`torch.cuda` if this process uses it, else None; never initializes it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _cuda_devices() -> list[DeviceInfo]:
    cuda = _cuda()
    count = 0 if cuda is None else cuda.device_count()
    return [DeviceInfo(name=f"cuda:{ordinal}", kind="cuda") for ordinal in range(count)]


def _cuda_uuid(ordinal: int) -> str | None:
    """A CUDA device's UUID in NVML's format, None if torch does not report it."""
    cuda = _cuda()
    if cuda is None or ordinal >= cuda.device_count():
        return None
    uuid = getattr(cuda.get_device_properties(ordinal), "uuid", None)
    return None if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}"


def _visible(ordinal: int) -> str | None:
    """The entry of `CUDA_VISIBLE_DEVICES` for a CUDA device: NVML's index or UUID."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(ordinal)
    entries = [entry.strip() for entry in visible.split(",") if entry.strip()]
    return entries[ordinal] if ordinal < len(entries) else None


def _ordinal(device: DeviceInfo) -> int | None:
    if device.kind != "cuda":
        return None
    _, _, number = device.name.partition(":")
    return int(number) if number.isdecimal() else None
