"""Parameter servers and a split model: bytes held and sent, against figures worked out by hand."""

import pytest

from dpwatch.plan.schemes import scheme
from dpwatch.plan.setup import ParameterTensor, Setup

# 40 elements: embeddings of 8, blocks of 2 + 10 and 5 and 3, a last norm of 2 and a head of 10.
TENSORS = tuple(
    ParameterTensor(shape=shape, unit=unit)
    for shape, unit in (
        *(((4, 2), 0), ((2,), 1), ((5, 2), 1), ((5,), 2), ((3,), 3)),
        *(((2,), 0), ((2, 5), 0)),
    )
)
P = 40 * 4
WHOLE = (P, P, 2 * P + 4 * 7, 0)
REPLICA = (P, P, 0, 0)


def small(devices, **changes):
    facts = {"batch": 2 * devices, "seq_len": 4, "width": 2, "vocabulary": 3, **changes}
    return Setup(tensors=TENSORS, devices=devices, **facts)


def held(name, setup):
    return [(h.params, h.grads, h.optimizer, h.buffers) for h in scheme(name).held(setup)]


def by_device(copies, devices):
    """Bytes that each device sends and receives."""
    return [
        (sum(c.nbytes for c in copies if c.src == d), sum(c.nbytes for c in copies if c.dst == d))
        for d in range(devices)
    ]


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_a_server_on_device_0_holds_and_carries_more(devices):
    assert held("ps-gpu0", small(devices)) == [WHOLE] + [REPLICA] * (devices - 1)
    copies = scheme("ps-gpu0").copies(small(devices, grad_accum=3))
    assert by_device(copies, devices) == [((devices - 1) * P,) * 2] + [(P, P)] * (devices - 1)


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_a_server_on_the_host_adds_a_row(devices):
    assert held("ps-cpu", small(devices)) == [REPLICA] * devices + [WHOLE]
    copies = scheme("ps-cpu").copies(small(devices))
    assert by_device(copies, devices + 1) == [(P, P)] * devices + [(devices * P,) * 2]


# By device: elements and tensors that it owns; the largest go first, to who has least.
OWNED = {
    2: [(10 + 8 + 2, 3), (10 + 5 + 3 + 2, 4)],
    3: [(10 + 3, 2), (10 + 2 + 2, 3), (8 + 5, 2)],
    4: [(10, 1), (10, 1), (8 + 2, 2), (5 + 3 + 2, 3)],
}


@pytest.mark.parametrize("devices", OWNED)
def test_servers_on_all_devices_own_a_part_each(devices):
    owned = OWNED[devices]
    assert held("ps-sharded", small(devices)) == [(P, P, 8 * n + 4 * k, 0) for n, k in owned]
    copies = scheme("ps-sharded").copies(small(devices))
    assert {c.kind for c in copies} == {"pull", "push"}
    # It sends its part to the others, and its gradients of theirs; and receives as much.
    sent = [4 * ((devices - 1) * n + 40 - n) for n, _ in owned]
    assert by_device(copies, devices) == [(nbytes, nbytes) for nbytes in sent]


def test_traffic_of_a_sharded_server_stays_below_twice_the_parameters():
    tensors = tuple(ParameterTensor(shape=(100,), unit=1) for _ in range(64))
    for devices in (2, 4, 8, 16):
        setup = Setup(tensors=tensors, devices=devices, batch=16, seq_len=1, width=1, vocabulary=1)
        sent, _ = by_device(scheme("ps-sharded").copies(setup), 1)[0]
        assert sent == 2 * (devices - 1) * setup.param_bytes // devices


FIRST, SECOND = 8 + 12 + 5, 3 + 2 + 10


@pytest.mark.parametrize("devices", [2, 4, 6])
def test_a_model_on_two_devices(devices):
    setup = small(devices, grad_accum=3, precision="bf16-mixed")
    rank = [(4 * n, 4 * n, 8 * n + 4 * k, 4 * n) for n, k in ((FIRST, 4), (SECOND, 3))]
    assert held("ddp-mp", setup) == rank * (devices // 2)
    calls = scheme("ddp-mp").collectives(setup)
    assert [(c.op, c.ranks, c.nbytes, c.device) for c in calls] == [
        ("all_reduce", devices // 2, 4 * FIRST, 0),
        ("all_reduce", devices // 2, 4 * SECOND, 1),
    ]
    # 3 micro-batches of 4 samples a rank, 4 tokens of 2 floats each.
    crossing = 3 * 4 * 4 * 2 * 4
    copies = [(c.kind, c.src, c.dst, c.nbytes) for c in scheme("ddp-mp").copies(setup)]
    assert copies == [("activation", 0, 1, crossing), ("activation_grad", 1, 0, crossing)]


def test_a_single_block_lies_on_the_first_device():
    tensors = tuple(ParameterTensor(shape=(n,), unit=u) for n, u in ((8, 0), (4, 1), (2, 0)))
    setup = Setup(tensors=tensors, devices=2, batch=2, seq_len=1, width=1, vocabulary=1)
    assert [h.params for h in scheme("ddp-mp").held(setup)] == [48, 8]
