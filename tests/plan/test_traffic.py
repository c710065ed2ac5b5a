"""Bytes on the wire against figures worked out by hand."""

import pytest

from dpwatch.plan.traffic import bus_factor, wire_bytes

P = 12_900_000  # bytes of parameters in the measured transformer, N = 4


@pytest.mark.parametrize(
    ("op", "nbytes", "ranks", "sent"),
    [
        ("all_reduce", P, 4, 19_350_000),  # 1.5 P
        ("all_gather", P // 4, 4, 9_675_000),  # 0.75 P
        ("reduce_scatter", P, 4, 9_675_000),  # 0.75 P
        ("all_to_all", 1000, 4, 750),
        ("broadcast", 1000, 4, 750),  # three of four ranks send it on
        ("reduce", 1000, 4, 750),
        ("gather", 1000, 4, 750),
        ("scatter", 4000, 4, 3000),
        ("barrier", 0, 4, 0),
        ("all_reduce", P, 1, 0),
        ("brand_new_op", 1000, 4, 1000),
    ],
)
def test_a_rank_sends_what_the_ring_says(op, nbytes, ranks, sent):
    assert wire_bytes(op, nbytes, ranks) == sent


def test_all_reduce_costs_what_reduce_scatter_and_all_gather_cost_together():
    for ranks in (2, 4, 8):
        halves = wire_bytes("reduce_scatter", P * 8, ranks) + wire_bytes(
            "all_gather", P * 8 // ranks, ranks
        )
        assert wire_bytes("all_reduce", P * 8, ranks) == halves


def test_zero3_sends_half_as_much_again_as_ddp():
    """ZeRO paper, section 7: 3Ψ against 2Ψ."""
    ranks, full = 8, 8_000_000
    ddp = wire_bytes("all_reduce", full, ranks)
    gather = wire_bytes("all_gather", full // ranks, ranks)
    assert 2 * gather + wire_bytes("reduce_scatter", full, ranks) == ddp * 3 // 2


@pytest.mark.parametrize(
    ("op", "factor"),
    [
        ("all_reduce", 1.5),
        ("all_gather", 0.75),
        ("reduce_scatter", 0.75),
        ("all_to_all", 0.75),
        ("broadcast", 1.0),
        ("reduce", 1.0),
        ("barrier", None),
        ("brand_new_op", None),
    ],
)
def test_bus_factors_are_those_of_nccl_tests(op, factor):
    assert bus_factor(op, 4) == factor


@pytest.mark.parametrize("wrong", [lambda: wire_bytes("all_reduce", 1, 0),
                                   lambda: wire_bytes("all_reduce", -1, 2),
                                   lambda: bus_factor("all_reduce", 0)])  # fmt: skip
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        wrong()
