"""Values that differ in anything are described otherwise, and the difference is told."""

import pytest
import torch

from tests.harmless import describe
from tests.harmless.differences import explain


def both(one, two):
    return describe.lines(one, detailed=True), describe.lines(two, detailed=True)


ONE = torch.arange(6.0).reshape(2, 3)


def bit(tensor):
    changed = tensor.clone()
    changed.view(torch.int32)[1, 2] ^= 1
    return changed


@pytest.mark.parametrize(
    "other",
    [
        bit(ONE),
        ONE.t().contiguous().t(),
        ONE.double(),
        ONE.clone().requires_grad_(),
        torch.nn.Parameter(ONE, requires_grad=False),
        torch.cat([ONE, ONE])[2:],
        ONE.to_sparse(),
        [ONE],
        (ONE * -1).neg_view() if hasattr(ONE, "neg_view") else torch._neg_view(-ONE),
        None,
    ],
)
def test_tensors_that_differ_in_anything(other):
    one, two = both(ONE, other)
    assert one != two
    assert describe.digest(one) != describe.digest(two)
    assert explain(one, two)


def test_two_nans_and_two_zeros_are_not_the_same():
    quiet = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert describe.lines(quiet[:1]) != describe.lines(quiet[1:].clone())
    assert describe.lines(torch.tensor(0.0)) != describe.lines(torch.tensor(-0.0))


def test_the_graph_behind_a_tensor_counts():
    leaf = torch.ones(2, requires_grad=True)
    one, two = both((leaf * 2).sum(), (leaf + leaf).sum())
    assert one != two
    assert "graph SumBackward0>MulBackward0" in explain(one, two)


@pytest.mark.parametrize(
    "value",
    [
        ONE, ONE[:, 1], ONE.expand(3, 2, 3), torch.empty(0, 3), torch.tensor(1 + 2j),
        torch.zeros(4, device="meta"), torch.ones(3, dtype=torch.bool),
        {"a": [ONE, (1, "x")]}, torch.full((2, 1), 1j).t(),
    ],
)  # fmt: skip
def test_equal_values_are_described_alike(value):
    again = value.clone() if isinstance(value, torch.Tensor) and value.is_contiguous() else value
    assert describe.lines(value) == describe.lines(again)


def test_what_is_told_of_a_difference():
    one, two = both({"grad": ONE}, {"grad": bit(ONE)})
    told = explain(one, two)
    assert told.startswith("['grad']: 1 of 6 numbers differ, the first at 5: 5.0 became 5.0000004")
    brain = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    one, two = both(brain, torch.tensor([1.0, 3.0], dtype=torch.bfloat16))
    assert "1 of 2 numbers differ, the first at 1: 2.0 became 3.0" in explain(one, two)
    one, two = both(ONE, ONE.t().contiguous().t())
    assert "strides (3, 1) became (1, 2)" in explain(one, two)
