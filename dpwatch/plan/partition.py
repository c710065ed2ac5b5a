"""Who owns which tensor, where whole tensors are spread over devices, and how they are bundled."""

from __future__ import annotations

from collections.abc import Sequence


def greedy_owners(sizes: Sequence[int], parts: int) -> tuple[int, ...]:
    """Gives each tensor, largest first, to the part that has the fewest elements so far.

    No part has more than the largest tensor above another. It is what torch's
    `ZeroRedundancyOptimizer` does; tensors of one size keep their order, and of parts with as
    little the first is chosen.

    Args:
        sizes: Elements of each tensor.
        parts: How many parts there are.

    Returns:
        By tensor, the part that owns it.

    Raises:
        ValueError: Fewer than one part.
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
    """Bundles of tensors of one owner, in the order in which backward makes them complete.

    Backward is taken to yield gradients in the reverse of the tensors' order.

    Args:
        sizes: Elements of each tensor.
        owners: By tensor, who owns it.
        limit: Elements of a bundle, at most; a larger tensor is a bundle of its own.

    Returns:
        The tensors' positions, by bundle.
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
