"""Rows that are not devices and ranks with several devices, in balances and traffic."""

import msgspec
import pytest

from dpwatch.run.derive.summarize import summarize
from dpwatch.run.diagnose import cpu_oversubscribed, master_imbalance
from dpwatch.wire.messages import Bye, Collective, DeviceInfo, Transfer
from tests.frames import MS, START_NS, batch, hello, memory, played, step

P = 1200


def server_run(steps=6, devices=3):
    """A parameter server on the host: balanced devices, and a host with more memory and traffic."""
    greeting = hello(1, [f"vgpu:{d}" for d in range(devices)], "virtual", "ps-cpu")
    greeting.devices.append(DeviceInfo("host", "host"))
    yield batch(greeting)
    for index in range(steps):
        records = []
        for d in range(devices):
            records.append(Transfer(index, "pull", devices, d, P, 2 * MS))
            records.append(Transfer(index, "push", d, devices, P, 3 * MS))
        for d in range(devices + 1):
            records.append(memory(index, 9000 if d == devices else 3000, device=d))
            records.append(step(index, device=d, samples=4 if d < devices else None))
        yield batch(*records, seq=index + 1, now_ns=records[-1].end_ns)


def halves_run(steps=6, ranks=2):
    """Two devices per rank: each all-reduces its part, and activations are copied both ways."""
    for r in range(ranks):
        names = [f"vgpu:{2 * r}", f"vgpu:{2 * r + 1}"]
        yield batch(hello(ranks, names, "virtual", "ddp-mp"), rank=r)
    for index in range(steps):
        for r in range(ranks):
            records = []
            for d, nbytes in enumerate((P, P // 2)):
                issued = START_NS + (100 * index + 50 + d) * MS
                records.append(
                    Collective(index, "all_reduce", "default", ranks, 2 * index + d, nbytes,
                               issued, issued + 4 * MS, device=d)
                )  # fmt: skip
                records.append(memory(index, 6000 if d == 0 else 3000, device=d))
                records.append(step(index, device=d))
            records.append(Transfer(index, "activation", 0, 1, 80, MS))
            records.append(Transfer(index, "activation_grad", 1, 0, 80, MS))
            yield batch(*records, rank=r, seq=index + 1, now_ns=START_NS + 100 * (index + 1) * MS)


@pytest.fixture
def served():
    return summarize(played(server_run()))


def test_a_host_is_a_row_but_not_a_device(served):
    assert [(row.device, row.device_kind) for row in served.ranks] == [
        ("vgpu:0", "virtual"), ("vgpu:1", "virtual"), ("vgpu:2", "virtual"), ("host", "host"),
    ]  # fmt: skip
    assert (served.world_size, served.devices) == (3, "virtual")
    assert msgspec.structs.astuple(served.balance) == (1.0, 1.0, 1.0)


def test_a_hosts_traffic_is_the_sum_of_the_devices(served):
    host = served.ranks[-1]
    assert (host.sent_bytes_per_step, host.received_bytes_per_step) == (3 * P, 3 * P)
    assert host.comm_ms.total == pytest.approx(3 * (2 + 3))


def test_master_imbalance_compares_devices_only(served):
    assert master_imbalance.rule(served) is None
    rows = [
        msgspec.structs.replace(row, memory=msgspec.structs.replace(row.memory, peak_bytes=9000))
        if row.device == "vgpu:0" else row
        for row in served.ranks
    ]  # fmt: skip
    balance = msgspec.structs.replace(served.balance, peak_device0_over_median=3.0)
    finding = master_imbalance.rule(msgspec.structs.replace(served, ranks=rows, balance=balance))
    assert finding.evidence["others_median_peak_bytes"] == 3000


def test_each_device_of_a_rank_has_its_own_share_of_collectives():
    run = summarize(played(halves_run()))
    sent = [row.sent_bytes_per_step for row in run.ranks]
    assert sent == [P + 80, P // 2 + 80] * 2
    assert [row.comm_ms.total for row in run.ranks] == [pytest.approx(4 + 2)] * 4
    (all_reduce,) = run.collectives
    assert (all_reduce.count_per_step, all_reduce.bytes_per_step) == (2, P + P // 2)


def test_a_model_on_two_devices_has_no_master():
    run = summarize(played(halves_run(ranks=1)))
    assert run.balance.peak_device0_over_median == 2.0
    assert master_imbalance.rule(run) is None


def test_a_thread_that_serves_two_devices_is_one_thread():
    run = summarize(played(halves_run()))
    rows = [msgspec.structs.replace(row, runqueue_wait=0.2) for row in run.ranks]
    finding = cpu_oversubscribed.rule(msgspec.structs.replace(run, ranks=rows))
    assert (finding.evidence["threads"], finding.evidence["runqueue_wait_mean"]) == (2, 0.4)
    rows[0] = msgspec.structs.replace(rows[0], runqueue_wait=None)
    finding = cpu_oversubscribed.rule(msgspec.structs.replace(run, ranks=rows))
    assert (finding.evidence["threads"], finding.evidence["runqueue_wait_mean"]) == (2, 0.4)


def test_a_devices_phases_come_from_steps_measured_on_it():
    known = {"forward_ns": 20 * MS, "backward_ns": 40 * MS, "optimizer_ns": 10 * MS}
    frames = [batch(hello(1, ["cuda:0"], "cuda"))]
    frames += [batch(step(i, data_ns=5 * MS), seq=i + 1) for i in range(9)]
    (row,) = summarize(played(frames)).ranks
    assert msgspec.structs.astuple(row.phases_ms) == (5.0, None, None, None, None, None)
    frames.append(batch(step(9, data_ns=5 * MS, **known), seq=10))
    (row,) = summarize(played(frames)).ranks
    assert msgspec.structs.astuple(row.phases_ms) == (5.0, None, 20.0, 40.0, 10.0, 25.0)


def test_a_killed_ranks_unreported_steps_count_for_its_main_device_only():
    """Another training thread of the rank has its own row, with its own steps."""
    said = [batch(hello(1, ["cpu", "cpu"]), step(0), step(0, device=1), pid=7)]
    killed = Bye("lost", "process 7 was killed by SIGKILL", -9, step=5)
    run = summarize(played([*said, batch(killed, pid=7, seq=-1)]))
    assert [row.steps for row in run.ranks] == [5, 1]
