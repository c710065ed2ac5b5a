"""The theory of sharding against figures worked out by hand."""

import pytest

from dpwatch.plan.scheme import Collectives, Held
from dpwatch.plan.schemes import scheme
from dpwatch.plan.setup import ParameterTensor, Setup
from dpwatch.plan.sharded import chunk_rows, shard_group


def setup(devices, **changes):
    """A root of 7 × 4 and 5 elements, and two blocks of 8 × 4 and 3 elements: 103 in all."""
    block = ((8, 4), (3,))
    tensors = [ParameterTensor(shape=shape, unit=0) for shape in ((7, 4), (5,))]
    tensors += [ParameterTensor(shape=shape, unit=unit) for unit in (1, 2) for shape in block]
    return Setup(
        tensors=tuple(tensors),
        devices=devices,
        batch=4,
        seq_len=2,
        width=4,
        vocabulary=7,
        **changes,
    )


def test_chunks_are_torchs():
    assert chunk_rows(7, 2) == (4, 3)
    assert chunk_rows(3, 4) == (1, 1, 1, 0)
    assert chunk_rows(5, 4) == (2, 2, 1, 0)


@pytest.mark.parametrize(
    ("ranks", "group"), [(1, 1), (2, 2), (3, 3), (4, 2), (6, 3), (8, 4), (9, 3)]
)
def test_hybrid_groups_are_the_largest_that_leave_replicas(ranks, group):
    assert shard_group(ranks) == group


def test_fsdp_pads_each_parameters_rows():
    # Root 2·4 + 2 = 10 (7 rows in 2 2 2 1, 5 in 2 2 1 0), a block 2·4 + 1 = 9 (3 rows in 1 1 1 0).
    held = scheme("fsdp").held(setup(4))
    assert {(each.params, each.grads) for each in held} == {(4 * 28, 4 * 28)}
    own = (10 + 2 * 9, 10 + 2 * 9, 9 + 2 * 9, 4 + 2 * 8)
    assert [each.optimizer for each in held] == [8 * elements + 4 * 6 for elements in own]


def test_fsdp1_pads_each_unit():
    # Root 33 and a block 35 elements, in quarters: 9 each.
    assert scheme("fsdp1").held(setup(4)) == (
        Held(params=4 * 27, grads=4 * 27, optimizer=8 * 27 + 4 * 3),
    ) * 4  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "gathered", "gathers", "scattered", "scatters"),
    [
        ({}, 4 * (10 + 2 * 18), 5, 4 * 4 * 28, 3),
        ({"reshard_after_forward": False}, 4 * 28, 3, 4 * 4 * 28, 3),
        ({"precision": "bf16-mixed"}, 2 * (10 + 2 * 18), 5, 4 * 4 * 28, 3),
        ({"grad_accum": 3}, 3 * 4 * (10 + 2 * 18), 15, 3 * 4 * 4 * 28, 9),
    ],
)
def test_fsdp_sends(changes, gathered, gathers, scattered, scatters):
    assert scheme("fsdp").collectives(setup(4, **changes)) == (
        Collectives(op="all_gather", ranks=4, nbytes=gathered, count=gathers),
        Collectives(op="reduce_scatter", ranks=4, nbytes=scattered, count=scatters),
    )


def test_fsdp1_always_drops_what_it_gathered():
    assert scheme("fsdp1").collectives(setup(4, reshard_after_forward=False)) == (
        Collectives(op="all_gather", ranks=4, nbytes=4 * (9 + 2 * 18), count=5),
        Collectives(op="reduce_scatter", ranks=4, nbytes=4 * 4 * 27, count=3),
    )


def test_hsdp_shards_in_rows_and_reduces_in_columns():
    # In halves: root 4·4 + 3 = 19, a block 4·4 + 2 = 18.
    assert scheme("hsdp").collectives(setup(4)) == (
        Collectives(op="all_gather", ranks=2, nbytes=4 * (19 + 2 * 36), count=5),
        Collectives(op="reduce_scatter", ranks=2, nbytes=4 * 2 * 55, count=3),
        Collectives(op="all_reduce", ranks=2, nbytes=4 * 55, count=3),
    )
    held = scheme("hsdp").held(setup(4))
    assert held[0] == held[2]
    assert held[1] == held[3]
    assert held[0].params == 4 * 55


@pytest.mark.parametrize("devices", [2, 3])
def test_hsdp_of_a_prime_number_is_fsdp(devices):
    what = setup(devices)
    assert scheme("hsdp").held(what) == scheme("fsdp").held(what)
    assert scheme("hsdp").collectives(what) == scheme("fsdp").collectives(what)


def test_without_padding_parameters_are_sent_three_times_and_the_roots_twice():
    tensors = [ParameterTensor(shape=(8, 8), unit=0)]
    tensors += [ParameterTensor(shape=(16, 16), unit=unit) for unit in (1, 2, 3)]
    what = Setup(tensors=tuple(tensors), devices=4, batch=4, seq_len=2, width=8, vocabulary=8)
    whole, root = what.param_bytes, 4 * 64
    sent = sum(each.sent_bytes for each in scheme("fsdp").collectives(what))
    assert sent == 3 * (3 * whole - root) // 4
