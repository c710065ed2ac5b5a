"""Theory of the schemes that shard all model state and gather it by unit: FSDP and variants.

Unit 0 is the root (embeddings, last norm, head), every other one a block. The exact padding:

- FSDP2 splits each parameter along its first dimension into chunks of ⌈rows/N⌉ rows. Shards of
  parameters and gradients are padded to a whole chunk, on the wire too. Optimizer state is only as
  large as the chunk's true rows, of which the last ranks may have fewer, or none.
- FSDP1 flattens each unit and pads it to a multiple of N, including optimizer state.

Gathers: a block's parameters before its forward and, unless they were kept, again before its
backward; the root's once, since they stay until its backward.
"""

from __future__ import annotations

from itertools import groupby

from dpwatch.plan.scheme import Collectives, Copies, Held, Scheme
from dpwatch.plan.setup import FLOAT_BYTES, ParameterTensor, Setup


def shard_group(ranks: int) -> int:
    """Size of the shard groups in a hybrid scheme: N's largest proper divisor.

    A prime N has only 1, which would shard nothing: there all ranks are one group.
    """
    return next((n for n in range(ranks // 2, 1, -1) if ranks % n == 0), ranks)


def chunk_rows(rows: int, shards: int) -> tuple[int, ...]:
    """Rows of each shard as `torch.chunk` splits them: full ones, a partial one, then none."""
    full = -(-rows // shards)
    return tuple(max(0, min(full, rows - full * shard)) for shard in range(shards))


class Fsdp:
    """`fully_shard` of each block and the root, over all ranks."""

    def shards(self, setup: Setup) -> int:
        """Number of ranks that together hold one copy of the model."""
        return setup.devices

    def held(self, setup: Setup) -> tuple[Held, ...]:
        """See `Scheme`."""
        shards = self.shards(setup)
        padded = FLOAT_BYTES * sum(self.shard_elements(setup))
        return tuple(
            Held(params=padded, grads=padded, optimizer=self._optimizer(setup, rank % shards))
            for rank in range(setup.devices)
        )

    def shard_elements(self, setup: Setup) -> tuple[int, ...]:
        """Elements of each unit that a rank holds, including padding; the root comes first."""
        shards = self.shards(setup)
        return tuple(
            sum(chunk_rows(t.shape[0], shards)[0] * (t.elements // t.shape[0]) for t in tensors)
            for tensors in units(setup)
        )

    def _optimizer(self, setup: Setup, shard: int) -> int:
        own = (
            chunk_rows(t.shape[0], self.shards(setup))[shard] * (t.elements // t.shape[0])
            for t in setup.tensors
        )
        return setup.optimizer_bytes(sum(own), len(setup.tensors))

    def peak_elements(self, setup: Setup) -> int:
        """See `Scheme`; the root and two units are gathered, as parameters and as gradients."""
        own = self.shard_elements(setup)
        shards = self.shards(setup)
        gathered = sum(own) + 2 * max(own) if self.keeps(setup) else own[0] + 3 * max(own)
        return setup.devices * (4 * sum(own) + shards * gathered)

    def keeps(self, setup: Setup) -> bool:
        """Whether gathered parameters stay from forward to backward."""
        return not setup.reshard_after_forward

    def collectives(self, setup: Setup) -> tuple[Collectives, ...]:
        """See `Scheme`."""
        shards = self.shards(setup)
        if shards == 1:
            return ()
        root, *blocks = self.shard_elements(setup)
        gathers = 1 if self.keeps(setup) else 2
        return (
            Collectives(
                op="all_gather",
                ranks=shards,
                nbytes=setup.grad_accum * setup.compute_bytes * (root + gathers * sum(blocks)),
                count=setup.grad_accum * (1 + gathers * len(blocks)),
            ),
            Collectives(
                op="reduce_scatter",
                ranks=shards,
                nbytes=setup.grad_accum * FLOAT_BYTES * shards * (root + sum(blocks)),
                count=setup.grad_accum * (1 + len(blocks)),
            ),
        )

    def copies(self, setup: Setup) -> tuple[Copies, ...]:
        """See `Scheme`."""
        return ()


class Fsdp1(Fsdp):
    """`FullyShardedDataParallel` around each block and the root: flat parameters."""

    def shard_elements(self, setup: Setup) -> tuple[int, ...]:
        """See `Fsdp`; each unit is one flat tensor, padded."""
        return tuple(-(-sum(t.elements for t in unit) // setup.devices) for unit in units(setup))

    def _optimizer(self, setup: Setup, shard: int) -> int:
        own = self.shard_elements(setup)
        return setup.optimizer_bytes(sum(own), len(own))

    def keeps(self, setup: Setup) -> bool:
        """See `Fsdp`; never (`FULL_SHARD`)."""
        return False


class Hsdp(Fsdp):
    """`fully_shard` inside groups, with each gradient shard all-reduced across them."""

    def shards(self, setup: Setup) -> int:
        """See `Fsdp`."""
        return shard_group(setup.devices)

    def collectives(self, setup: Setup) -> tuple[Collectives, ...]:
        """See `Scheme`."""
        replicas = setup.devices // self.shards(setup)
        inside = super().collectives(setup)
        if replicas == 1:
            return inside
        own = self.shard_elements(setup)
        across = Collectives(
            op="all_reduce",
            ranks=replicas,
            nbytes=setup.grad_accum * FLOAT_BYTES * sum(own),
            count=setup.grad_accum * len(own),
        )
        return (*inside, across)


def units(setup: Setup) -> tuple[tuple[ParameterTensor, ...], ...]:
    """The parameters by unit, the root first."""
    by_unit = sorted(setup.tensors, key=lambda tensor: tensor.unit)
    return tuple(tuple(tensors) for _, tensors in groupby(by_unit, key=lambda t: t.unit))


SCHEMES: dict[str, Scheme] = {"fsdp1": Fsdp1(), "fsdp": Fsdp(), "hsdp": Hsdp()}
