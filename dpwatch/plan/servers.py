"""Theory of the schemes in which one process drives all devices and copies between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dpwatch.plan.partition import greedy_owners
from dpwatch.plan.replicated import whole_model
from dpwatch.plan.scheme import Collectives, Copies, Held, Scheme
from dpwatch.plan.setup import FLOAT_BYTES, TOKEN_BYTES, Setup


class Dp:
    """`nn.DataParallel`: device 0 holds everything between steps, and every copy involves it."""

    def held(self, setup: Setup) -> tuple[Held, ...]:
        """See `Scheme`."""
        return (whole_model(setup), *(Held() for _ in range(setup.devices - 1)))

    def peak_elements(self, setup: Setup) -> int:
        """See `Scheme`; a replica and its gradients per device, and one bucket on device 0."""
        others = setup.devices - 1
        return (4 + (2 * others + 1 if others else 0)) * setup.elements

    def collectives(self, setup: Setup) -> tuple[Collectives, ...]:
        """See `Scheme`."""
        return ()

    def copies(self, setup: Setup) -> tuple[Copies, ...]:
        """See `Scheme`."""
        tokens = setup.batch // setup.devices * setup.seq_len
        logits = tokens * setup.vocabulary * setup.compute_bytes
        each = (
            ("scatter", True, tokens * TOKEN_BYTES),
            ("replicate", True, setup.param_bytes),
            ("gather", False, logits),
            ("scatter_grad", True, logits),
            ("reduce", False, setup.param_bytes),
        )
        return tuple(
            Copies(
                kind=kind,
                src=0 if outward else device,
                dst=device if outward else 0,
                nbytes=setup.grad_accum * nbytes,
            )
            for kind, outward, nbytes in each
            for device in range(1, setup.devices)
        )


class ParameterServer:
    """Workers with replicas; each parameter is owned by one server, a worker or the host.

    Args:
        owners: Returns the owner of each tensor; N is the host.
    """

    def __init__(self, owners: Callable[[Setup], Sequence[int]]) -> None:
        self._owners = owners

    def held(self, setup: Setup) -> tuple[Held, ...]:
        """See `Scheme`; each has P parameters and P gradients, servers the state of what they own.

        The host's gradients are the sum of all. A worker's are its own, except that a server's part
        is the mean.
        """
        owned = self._owned(setup)
        return tuple(
            Held(
                params=setup.param_bytes,
                grads=setup.param_bytes,
                optimizer=setup.optimizer_bytes(
                    sum(setup.tensors[at].elements for at in owned.get(device, ())),
                    len(owned.get(device, ())),
                ),
            )
            for device in range(max(setup.devices, *(server + 1 for server in owned)))
        )

    def peak_elements(self, setup: Setup) -> int:
        """See `Scheme`; to what is held add the servers' incoming buckets: at most P in all."""
        places = len(self.held(setup))
        return (2 * places + 3) * setup.elements

    def collectives(self, setup: Setup) -> tuple[Collectives, ...]:
        """See `Scheme`."""
        return ()

    def copies(self, setup: Setup) -> tuple[Copies, ...]:
        """See `Scheme`; once per step, for any number of micro-batches."""
        copies = []
        for server, tensors in self._owned(setup).items():
            nbytes = FLOAT_BYTES * sum(setup.tensors[at].elements for at in tensors)
            for worker in range(setup.devices):
                if worker != server:
                    copies.append(Copies(kind="pull", src=server, dst=worker, nbytes=nbytes))
                    copies.append(Copies(kind="push", src=worker, dst=server, nbytes=nbytes))
        return tuple(copies)

    def _owned(self, setup: Setup) -> dict[int, list[int]]:
        owned: dict[int, list[int]] = {}
        for at, owner in enumerate(self._owners(setup)):
            owned.setdefault(owner, []).append(at)
        return owned


def _on_device_0(setup: Setup) -> Sequence[int]:
    return [0] * len(setup.tensors)


def _on_host(setup: Setup) -> Sequence[int]:
    return [setup.devices] * len(setup.tensors)


def _spread(setup: Setup) -> Sequence[int]:
    return greedy_owners([tensor.elements for tensor in setup.tensors], setup.devices)


SCHEMES: dict[str, Scheme] = {
    "dp": Dp(),
    "ps-gpu0": ParameterServer(_on_device_0),
    "ps-cpu": ParameterServer(_on_host),
    "ps-sharded": ParameterServer(_spread),
}
