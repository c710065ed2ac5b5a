"""Bytes ZeRO holds and sends, against figures worked out by hand and the paper's table 1."""

import pytest

from dpwatch.plan.schemes import scheme
from dpwatch.plan.setup import ParameterTensor, Setup

# 31 elements: a root of 8 + 6, and a block of 2 + 10 + 5.
TENSORS = tuple(
    ParameterTensor(shape=shape, unit=unit)
    for shape, unit in (((4, 2), 0), ((3, 2), 0), ((2,), 1), ((5, 2), 1), ((5,), 1))
)
P = 31 * 4


def small(devices, **changes):
    facts = {"batch": devices, "seq_len": 4, "width": 2, "vocabulary": 3, **changes}
    return Setup(tensors=TENSORS, devices=devices, **facts)


# By rank: elements and tensors of what the greedy partition gives it.
OWNED = {
    1: [(31, 5)],
    2: [(10 + 5, 2), (8 + 6 + 2, 3)],
    3: [(10, 1), (8 + 2, 2), (6 + 5, 2)],
    4: [(10, 1), (8, 1), (6, 1), (5 + 2, 2)],
}


@pytest.mark.parametrize("devices", OWNED)
def test_zero1_shards_the_optimizer_state_in_theory(devices):
    held = scheme("zero1").held(small(devices))
    assert [(h.params, h.grads, h.buffers) for h in held] == [(P, P, P)] * devices
    assert [h.optimizer for h in held] == [8 * n + 4 * tensors for n, tensors in OWNED[devices]]
    assert all(h.optimizer == 0 for h in scheme("zero1").held(small(devices, optimizer="sgd")))


@pytest.mark.parametrize("devices", OWNED)
def test_zero2_shards_gradients_too(devices):
    held = scheme("zero2").held(small(devices))
    assert [(h.params, h.buffers) for h in held] == [(P, 0)] * devices
    assert [h.grads for h in held] == [4 * n for n, _ in OWNED[devices]]
    assert [h.optimizer for h in held] == [8 * n + 4 * tensors for n, tensors in OWNED[devices]]


# A rank's part of the units, 14 and 17 elements filled up to a multiple of N.
@pytest.mark.parametrize(
    ("devices", "root", "block"), [(1, 14, 17), (2, 7, 9), (3, 5, 6), (4, 4, 5)]
)
def test_zero3_shards_everything_flat_and_padded(devices, root, block):
    held = scheme("zero3").held(small(devices))
    part = root + block
    assert [(h.params, h.grads, h.optimizer, h.buffers) for h in held] == [
        (4 * part, 4 * part, 8 * part + 2 * 4, 0)
    ] * devices
    gather, scatter = scheme("zero3").collectives(small(devices, grad_accum=3))
    assert (gather.op, gather.count, gather.nbytes) == ("all_gather", 9, 3 * 4 * (root + 2 * block))
    assert (scatter.op, scatter.count) == ("reduce_scatter", 6)
    assert scatter.nbytes == 3 * 4 * part * devices


def test_zero1_sends_an_all_reduce_and_broadcasts():
    sent = [(c.op, c.nbytes, c.sent_bytes) for c in scheme("zero1").collectives(small(4))]
    assert sent == [("all_reduce", P, 186), ("broadcast", P, 93)]  # 1.5 P, 0.75 P


@pytest.mark.parametrize("grad_accum", [1, 3])
def test_zero2_reduces_every_micro_batch_and_broadcasts_once(grad_accum):
    """One bucket per owner here, as they are small: the paper's 2Ψ in all, like DDP."""
    reduce, broadcast = scheme("zero2").collectives(small(4, grad_accum=grad_accum))
    assert (reduce.op, reduce.nbytes, reduce.count) == ("reduce", grad_accum * P, grad_accum * 4)
    assert (broadcast.op, broadcast.nbytes, broadcast.count) == ("broadcast", P, 4)
    assert reduce.sent_bytes == grad_accum * 93
    assert broadcast.sent_bytes == 93


def test_a_rank_may_own_nothing():
    held = scheme("zero2").held(small(7))
    assert [h.grads // 4 for h in held] == [10, 8, 6, 5, 2, 0, 0]
    assert scheme("zero2").collectives(small(7))[1].count == 5


@pytest.mark.parametrize(
    ("strategy", "gigabytes"), [("ddp", 120), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.88)]
)
def test_table_1_of_the_paper(strategy, gigabytes):
    """7.5 billion parameters on 64 ranks: 2 bytes of each, 2 of its gradient, 12 of its state."""
    layers, elements = 6400, 7_500_000_000
    tensors = [ParameterTensor(shape=(elements // layers,), unit=at) for at in range(layers)]
    setup = Setup(tensors=tuple(tensors), devices=64, batch=64, seq_len=1, width=1, vocabulary=2)
    counted = setup.optimizer_bytes(0, 1)
    for held in scheme(strategy).held(setup):
        per_rank = layers if strategy in ("ddp", "zero3") else layers // 64
        state = (held.optimizer - per_rank * counted) / 8
        nbytes = 2 * held.params / 4 + 2 * held.grads / 4 + 12 * state
        assert nbytes / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_volumes_of_the_papers_section_7():
    """In elements of payload: 2Ψ for ZeRO-2, and 3Ψ for ZeRO-3 minus the root's second gather."""
    tensors = tuple(ParameterTensor(shape=(640,), unit=at) for at in range(100))
    setup = Setup(tensors=tensors, devices=64, batch=64, seq_len=1, width=1, vocabulary=2)
    sent = {
        name: sum(c.sent_bytes for c in scheme(name).collectives(setup))
        for name in ("ddp", "zero2", "zero3")
    }
    assert sent["zero2"] == sent["ddp"] == 2 * 63 * setup.param_bytes // 64
    assert sent["zero3"] == 3 * 63 * setup.param_bytes // 64 - 63 * 10 * 4
