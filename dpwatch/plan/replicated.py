"""Theory of the schemes in which every rank holds the whole model."""

from __future__ import annotations

from dpwatch.plan.scheme import Collectives, Copies, Held, Scheme
from dpwatch.plan.setup import Setup


class Single:
    """One device: P parameters, P gradients, the optimizer's state; nothing is sent."""

    def held(self, setup: Setup) -> tuple[Held, ...]:
        """See `Scheme`."""
        return (whole_model(setup),)

    def peak_elements(self, setup: Setup) -> int:
        """See `Scheme`."""
        return 4 * setup.elements

    def collectives(self, setup: Setup) -> tuple[Collectives, ...]:
        """See `Scheme`."""
        return ()

    def copies(self, setup: Setup) -> tuple[Copies, ...]:
        """See `Scheme`."""
        return ()


class Ddp(Single):
    """DistributedDataParallel: `Single` on every rank, plus a copy of the gradients in buckets.

    All micro-batches but the last send nothing (`no_sync`).
    """

    def held(self, setup: Setup) -> tuple[Held, ...]:
        """See `Scheme`."""
        own = whole_model(setup)
        with_buckets = Held(
            params=own.params,
            grads=own.grads,
            optimizer=own.optimizer,
            buffers=setup.param_bytes,
        )
        return (with_buckets,) * setup.devices

    def peak_elements(self, setup: Setup) -> int:
        """See `Scheme`."""
        return 5 * setup.elements * setup.devices

    def collectives(self, setup: Setup) -> tuple[Collectives, ...]:
        """See `Scheme`."""
        return (Collectives(op="all_reduce", ranks=setup.devices, nbytes=setup.param_bytes),)


def whole_model(setup: Setup) -> Held:
    """Bytes needed to train the whole model on one device."""
    return Held(
        params=setup.param_bytes,
        grads=setup.param_bytes,
        optimizer=setup.optimizer_bytes(setup.elements, len(setup.tensors)),
    )


SCHEMES: dict[str, Scheme] = {"single": Single(), "ddp": Ddp()}
