"""Parsing nvidia-smi's output, valid and malformed."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwatch.run.model.snapshot import GpuProcess, HostGpu
from dpwatch.viewer.remote import nvidia_smi
from tests.nvidia_smi import A100, A100_USERS, NO_DRIVER

MIB = 1 << 20


def read(gpus, users=""):
    return nvidia_smi.gpus("node1", gpus.splitlines(), users.splitlines())


def test_both_tables_are_parsed():
    assert read(A100, A100_USERS) == (
        HostGpu(
            index=0, name="NVIDIA A100-SXM4-80GB", util=0.93, temperature_c=61.0, power_w=287.45,
            used_bytes=70213 * MIB, capacity_bytes=81920 * MIB, host="node1",
            processes=(GpuProcess(41873, "python", 70198 * MIB),),
        ),
        HostGpu(
            index=1, name="NVIDIA A100-SXM4-80GB", util=0.0, temperature_c=34.0, power_w=62.1,
            used_bytes=4 * MIB, capacity_bytes=81920 * MIB, host="node1",
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    "word",
    ["[N/A]", "N/A", "[Not Supported]", "[Insufficient Permissions]", "[Unknown Error]", "ERR!",
     "[GPU requires reset]", "61,5", "1 024", "0x10", "nan", "inf", "1e3", "٣", "", "9" * 40, "-1"],
)  # fmt: skip
def test_anything_but_a_number_is_unknown_and_never_0(word):
    (gpu,) = read(f"0, GPU-a, {word}, {word}, {word}, {word}, {word}, T4", f"GPU-a, 7, {word}, x")
    assert gpu.temperature_c == (-1.0 if word == "-1" else None)
    assert (gpu.util, gpu.power_w, gpu.used_bytes, gpu.capacity_bytes) == (None,) * 4
    assert gpu.processes == (GpuProcess(7, "x", None),)


def test_a_mig_slices_processes_are_its_gpus():
    """With MIG the load is unknown, in a container even the memory; processes of a slice belong to
    its GPU."""
    told = "0, GPU-5d5b, [N/A], 47, 92.30, [Insufficient Permissions], 81920, NVIDIA A100, PCIe"
    users = "MIG-GPU-5d5b/3/0, 11, 900, python\nMIG-7c1e-no-one-knows-whose, 12, 5, python"
    (gpu,) = read(told, users)
    assert (gpu.name, gpu.util, gpu.used_bytes) == ("NVIDIA A100, PCIe", None, None)
    assert gpu.processes == (GpuProcess(11, "python", 900 * MIB),)


def test_names_may_contain_anything():
    users = (
        "GPU-a, 5, 1, [Not Found]\n"
        "GPU-a, 6, 1, /tmp/a, b, 7, 9/\x1b[31mred\n"
        "GPU-a, 7, 1, " + "n" * 9999 + "\n"
        "GPU-a, -7, 1, x\nGPU-a, 0, 1, x\nGPU-a, 99999999999, 1, x\n\n, , ,\nGPU-b, 1, 2, else"
    )
    (gpu,) = read("0, GPU-a, 1, 2, 3, 4, 5, " + "N" * 9999, users)
    assert [(each.pid, each.name) for each in gpu.processes] == [
        (5, ""), (6, "\x1b[31mred"), (7, "n" * 256)
    ]  # fmt: skip
    assert gpu.name == "N" * 256


def test_malformed_lines_give_no_gpu():
    assert read(NO_DRIVER) == ()
    assert read("No devices were found") == ()
    assert read("index, uuid, utilization.gpu [%], …, name\n\n, , , , , , ,\n0, GPU-a, 1, 2") == ()


def test_output_of_nvidia_smi_is_bounded():
    many = "\n".join(f"{i}, GPU-{i}, 1, 2, 3, 4, 5, x" for i in range(5000))
    users = "\n".join(f"GPU-0, {i + 1}, 1, x" for i in range(5000))
    found = read(many, users)
    assert len(found) == nvidia_smi.MOST_GPUS
    assert len(found[0].processes) == nvidia_smi.MOST_PROCESSES


@given(st.text(alphabet=string.printable + "é\u202e\x00\ud800", max_size=200))
def test_no_output_raises(text):
    for gpu in read(f"{text}\n0, GPU-a, {text}", f"GPU-a, {text}\n{text}"):
        assert gpu.util is None or 0 <= gpu.util <= 1
        assert gpu.used_bytes is None or gpu.used_bytes >= 0
