"""Theory of ZeRO: optimizer state, then gradients, then parameters sharded over the ranks.

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020;
table 1 has the bytes a rank holds, section 7 those it sends.
"""

from __future__ import annotations

from dpwatch.plan.partition import greedy_owners, reduction_buckets
from dpwatch.plan.scheme import Collectives, Copies, Held, Scheme
from dpwatch.plan.setup import FLOAT_BYTES, Setup

ZERO2_BUCKET_ELEMENTS = 64 * 1024
"""Bucket size of `zero2`. torch's DDP uses a hundred times as much, which would keep all gradients
of a small model until the end of backward."""


class Zero1:
    """DDP and `ZeroRedundancyOptimizer`: whole tensors have owners, which keep their state."""

    def held(self, setup: Setup) -> tuple[Held, ...]:
        """See `Scheme`."""
        return tuple(
            Held(
                params=setup.param_bytes,
                grads=setup.param_bytes,
                optimizer=setup.optimizer_bytes(elements, tensors),
                buffers=setup.param_bytes,
            )
            for elements, tensors in owned(setup)
        )

    def peak_elements(self, setup: Setup) -> int:
        """See `Scheme`; parameters, gradients and buckets per rank, one optimizer state in all."""
        return (3 * setup.devices + 2) * setup.elements

    def collectives(self, setup: Setup) -> tuple[Collectives, ...]:
        """See `Scheme`; DDP's own, then one broadcast per tensor.

        The number of broadcasts is not predicted: there are two more when DDP rebuilds its buckets.
        """
        return (
            Collectives(op="all_reduce", ranks=setup.devices, nbytes=setup.param_bytes),
            Collectives(op="broadcast", ranks=setup.devices, nbytes=setup.param_bytes),
        )

    def copies(self, setup: Setup) -> tuple[Copies, ...]:
        """See `Scheme`."""
        return ()


class Zero2(Zero1):
    """Gradients are reduced to the same owners, in every micro-batch."""

    def held(self, setup: Setup) -> tuple[Held, ...]:
        """See `Scheme`."""
        return tuple(
            Held(
                params=setup.param_bytes,
                grads=FLOAT_BYTES * elements,
                optimizer=setup.optimizer_bytes(elements, tensors),
            )
            for elements, tensors in owned(setup)
        )

    def peak_elements(self, setup: Setup) -> int:
        """See `Scheme`; besides its shares a rank has two buckets, one full and one in progress."""
        most = max(ZERO2_BUCKET_ELEMENTS, *(tensor.elements for tensor in setup.tensors))
        return setup.devices * (setup.elements + 2 * most) + 3 * setup.elements

    def collectives(self, setup: Setup) -> tuple[Collectives, ...]:
        """See `Scheme`; one broadcast for each rank that owns anything."""
        sizes = [tensor.elements for tensor in setup.tensors]
        owners = greedy_owners(sizes, setup.devices)
        buckets = reduction_buckets(sizes, owners, ZERO2_BUCKET_ELEMENTS)
        return (
            Collectives(
                op="reduce",
                ranks=setup.devices,
                nbytes=setup.grad_accum * setup.param_bytes,
                count=setup.grad_accum * len(buckets),
            ),
            Collectives(
                op="broadcast",
                ranks=setup.devices,
                nbytes=setup.param_bytes,
                count=len(set(owners)),
            ),
        )


class Zero3(Zero1):
    """Every unit's parameters are flattened and padded to a multiple of N; a rank has an N-th."""

    def held(self, setup: Setup) -> tuple[Held, ...]:
        """See `Scheme`; including padding."""
        units = padded_units(setup)
        elements = sum(units) // setup.devices
        each = Held(
            params=FLOAT_BYTES * elements,
            grads=FLOAT_BYTES * elements,
            optimizer=setup.optimizer_bytes(elements, len(units)),
        )
        return (each,) * setup.devices

    def peak_elements(self, setup: Setup) -> int:
        """See `Scheme`; in backward a rank has the root and two blocks, and their gradients."""
        root, *blocks = padded_units(setup)
        gathered = root + sum(sorted(blocks)[-2:])
        return 4 * (root + sum(blocks)) + 2 * setup.devices * gathered

    def collectives(self, setup: Setup) -> tuple[Collectives, ...]:
        """See `Scheme`; the root is gathered once per micro-batch, a block twice."""
        root, *blocks = padded_units(setup)
        gathered = (root + 2 * sum(blocks)) // setup.devices
        return (
            Collectives(
                op="all_gather",
                ranks=setup.devices,
                nbytes=setup.grad_accum * FLOAT_BYTES * gathered,
                count=setup.grad_accum * (1 + 2 * len(blocks)),
            ),
            Collectives(
                op="reduce_scatter",
                ranks=setup.devices,
                nbytes=setup.grad_accum * FLOAT_BYTES * (root + sum(blocks)),
                count=setup.grad_accum * (1 + len(blocks)),
            ),
        )


def owned(setup: Setup) -> tuple[tuple[int, int], ...]:
    """Number of elements and tensors that each rank owns."""
    sizes = [tensor.elements for tensor in setup.tensors]
    owners = greedy_owners(sizes, setup.devices)
    return tuple(
        (
            sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank),
            owners.count(rank),
        )
        for rank in range(setup.devices)
    )


def padded_units(setup: Setup) -> tuple[int, ...]:
    """Elements of each unit, padded to a multiple of N; the root comes first."""
    last = max(tensor.unit for tensor in setup.tensors)
    sizes = [sum(t.elements for t in setup.tensors if t.unit == unit) for unit in range(last + 1)]
    return tuple(-(-size // setup.devices) * setup.devices for size in sizes)


SCHEMES: dict[str, Scheme] = {"zero1": Zero1(), "zero2": Zero2(), "zero3": Zero3()}
