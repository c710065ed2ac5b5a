"""Which device owns which tensor when whole tensors are partitioned, and how they are bucketed."""

from __future__ import annotations

from collections.abc import Sequence


def greedy_owners(sizes: Sequence[int], parts: int) -> tuple[int, ...]:
    """Assigns each tensor, largest first, to the part with the fewest elements so far.

    No part exceeds another by more than the largest tensor. This is the algorithm of torch's
    `ZeroRedundancyOptimizer`; tensors of equal size keep their order, and of equally small parts
    the first is chosen.

    Args:
        sizes: Number of elements of each tensor.
        parts: Number of parts.

    Returns:
        For each tensor, the part that owns it.

    Raises:
        ValueError: `parts` is less than one.
    """
    if parts < 1:
        raise ValueError(f"parts must be at least 1, got {parts}")
    loads = [0] * parts
    owners = [0] * len(sizes)
    for tensor in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        owner = loads.index(min(loads))
        owners[tensor] = owner
        loads[owner] += sizes[tensor]
    return tuple(owners)


def reduction_buckets(
    sizes: Sequence[int], owners: Sequence[int], limit: int
) -> tuple[tuple[int, ...], ...]:
    """Buckets of tensors of one owner, in the order in which backward completes them.

    Backward is assumed to produce gradients in reverse order of the tensors.

    Args:
        sizes: Number of elements of each tensor.
        owners: Owner of each tensor.
        limit: Most elements in a bucket; a larger tensor is a bucket of its own.

    Returns:
        The tensors' positions, by bucket.
    """
    complete: list[list[int]] = []
    filling: dict[int, list[int]] = {}
    for tensor in reversed(range(len(sizes))):
        bundle = filling.setdefault(owners[tensor], [])
        if bundle and sum(sizes[at] for at in bundle) + sizes[tensor] > limit:
            complete.append(bundle)
            bundle = filling[owners[tensor]] = []
        bundle.append(tensor)
    complete.extend(filling.values())
    return tuple(tuple(bundle) for bundle in sorted(complete, key=lambda bundle: -bundle[-1]))
