"""The partition against torch's own, and reduction buckets against figures worked out by hand."""

import pytest

from dpwatch.plan.partition import greedy_owners, reduction_buckets


def test_the_largest_tensor_goes_to_the_smallest_part():
    assert greedy_owners([4, 1, 9, 4, 3], 2) == (1, 0, 0, 1, 1)


def test_equal_tensors_are_assigned_in_order():
    assert greedy_owners([5, 5, 5, 5], 3) == (0, 1, 2, 0)


def test_parts_may_stay_empty():
    assert greedy_owners([7], 3) == (0,)
    with pytest.raises(ValueError, match="parts"):
        greedy_owners([7], 0)


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7])
def test_no_part_is_ahead_by_more_than_the_largest_tensor(parts):
    sizes = [128, 49152, 16384, 65536, 512, 65536, 8192, 12416, 128, 128]
    owners = greedy_owners(sizes, parts)
    loads = [sum(s for s, o in zip(sizes, owners, strict=True) if o == p) for p in range(parts)]
    assert sum(loads) == sum(sizes)
    assert max(loads) - min(loads) <= max(sizes)


def test_buckets_hold_one_owners_tensors_in_backward_order():
    sizes, owners = [6, 2, 3, 3, 9, 1], [0, 1, 0, 0, 1, 0]
    assert reduction_buckets(sizes, owners, 6) == ((4,), (5, 3), (2,), (1,), (0,))
    assert reduction_buckets(sizes, owners, 100) == ((4, 1), (5, 3, 2, 0))
    assert reduction_buckets([], [], 6) == ()
