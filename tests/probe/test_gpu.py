"""The GPU reader against a fake NVML."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from dpwatch.probe import gpu
from dpwatch.wire.messages import DeviceInfo, Gpu

CPU = DeviceInfo(name="cpu", kind="cpu")


def cuda_device(ordinal):
    return DeviceInfo(name=f"cuda:{ordinal}", kind="cuda")


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """Two GPUs; `broken` names the calls that fail."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, broken=()):
        super().__init__("pynvml")
        self.broken = set(broken)
        self.asked = []

    def __getattribute__(self, name):
        if name.startswith("nvml") and name in super().__getattribute__("broken"):

            def fails(*_):
                raise NVMLError(name)

            return fails
        return super().__getattribute__(name)

    def nvmlInit(self):
        self.asked.append("init")

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked.append(uuid)
        return {"GPU-aaaa": 0, "GPU-bbbb": 1}[uuid]

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=(25, 75)[handle], memory=0)

    def nvmlDeviceGetTemperature(self, handle, _sensor):
        return (40, 60)[handle]

    def nvmlDeviceGetPowerUsage(self, handle):
        return (100_000, 250_500)[handle]

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=(1, 2)[handle] << 30, total=80 << 30)


@pytest.fixture
def install(monkeypatch):
    def install(nvml):
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(gpu, "_reader", None)
        monkeypatch.setattr(gpu, "_tried", False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return nvml

    return install


@pytest.fixture
def cuda_with_uuids(monkeypatch):
    """CUDA's own order is the reverse of NVML's."""
    uuids = ("bbbb", "aaaa")
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        get_device_properties=lambda ordinal: SimpleNamespace(uuid=uuids[ordinal]),
    )
    monkeypatch.setattr(gpu, "_cuda", lambda: cuda)


def test_a_reading_has_all_values_in_its_units(install):
    install(FakeNvml())
    assert gpu.poll([CPU, cuda_device(1)]) == [
        Gpu(device=1, util=0.75, temperature_c=60.0, power_w=250.5,
            used_bytes=2 << 30, capacity_bytes=80 << 30)
    ]  # fmt: skip


def test_uuids_join_cuda_and_nvml(install, cuda_with_uuids):
    install(FakeNvml())
    first, second = gpu.poll([cuda_device(0), cuda_device(1)])
    assert (first.device, first.temperature_c) == (0, 60.0)
    assert (second.device, second.temperature_c) == (1, 40.0)


def test_without_a_list_every_cuda_device_is_read(install, cuda_with_uuids):
    install(FakeNvml())
    assert [reading.device for reading in gpu.poll()] == [0, 1]


def test_handles_are_looked_up_once(install, cuda_with_uuids):
    nvml = install(FakeNvml())
    gpu.poll([cuda_device(0)])
    gpu.poll([cuda_device(0)])
    assert nvml.asked == ["init", "GPU-bbbb"]


@pytest.mark.parametrize(("visible", "celsius"), [("1", 60.0), ("1,0", 60.0), ("GPU-aaaa", 40.0)])
def test_visible_devices_stand_in_for_uuids(install, monkeypatch, visible, celsius):
    install(FakeNvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.poll([cuda_device(0)])[0].temperature_c == celsius


def test_a_device_that_is_not_visible_is_not_read(install, monkeypatch):
    install(FakeNvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpu.poll([cuda_device(3)]) == []


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ("nvmlDeviceGetUtilizationRates", ["util"]),
        ("nvmlDeviceGetTemperature", ["temperature_c"]),
        ("nvmlDeviceGetPowerUsage", ["power_w"]),
        ("nvmlDeviceGetMemoryInfo", ["used_bytes", "capacity_bytes"]),
    ],
)
def test_missing_nvml_values_are_unknown(install, call, fields):
    install(FakeNvml(broken=[call]))
    (reading,) = gpu.poll([cuda_device(0)])
    values = {name: getattr(reading, name) for name in Gpu.__struct_fields__}
    assert [name for name, value in values.items() if value is None] == fields


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetHandleByIndex"])
def test_without_a_driver_there_are_no_gpus_and_no_message(install, call, capsys):
    install(FakeNvml(broken=[call]))
    assert gpu.poll([cuda_device(0)]) == []
    assert capsys.readouterr() == ("", "")


def test_no_package_means_no_gpus(install):
    install(None)  # makes the import fail
    assert gpu.poll([cuda_device(0)]) == []


def test_a_cpu_rank_never_loads_nvml(install):
    nvml = install(FakeNvml())
    assert gpu.poll([CPU]) == []
    assert gpu.poll() == []
    assert nvml.asked == []
