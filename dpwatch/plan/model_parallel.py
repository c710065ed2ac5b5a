"""Theory of `ddp-mp`: DDP over a model split over two devices per rank."""

from __future__ import annotations

from dpwatch.plan.scheme import Collectives, Copies, Held, Scheme
from dpwatch.plan.setup import FLOAT_BYTES, ParameterTensor, Setup

DEVICES_A_RANK = 2


class DdpTwoDevices:
    """Device 0 of a rank has the first half of the model, device 1 the other, each as in `Ddp`."""

    def held(self, setup: Setup) -> tuple[Held, ...]:
        """See `Scheme`."""
        rank = []
        for tensors in halves(setup):
            elements = sum(tensor.elements for tensor in tensors)
            rank.append(
                Held(
                    params=FLOAT_BYTES * elements,
                    grads=FLOAT_BYTES * elements,
                    optimizer=setup.optimizer_bytes(elements, len(tensors)),
                    buffers=FLOAT_BYTES * elements,
                )
            )
        return tuple(rank) * _ranks(setup)

    def peak_elements(self, setup: Setup) -> int:
        """See `Scheme`."""
        return 5 * setup.elements * _ranks(setup)

    def collectives(self, setup: Setup) -> tuple[Collectives, ...]:
        """See `Scheme`; each device's gradients are reduced separately."""
        return tuple(
            Collectives(
                op="all_reduce",
                ranks=_ranks(setup),
                nbytes=FLOAT_BYTES * sum(tensor.elements for tensor in tensors),
                device=device,
            )
            for device, tensors in enumerate(halves(setup))
        )

    def copies(self, setup: Setup) -> tuple[Copies, ...]:
        """See `Scheme`; activations between blocks are float32 under `bf16-mixed` too.

        A block adds what it computes in bfloat16 to them, and that sum is float32.
        """
        samples = setup.grad_accum * setup.batch // _ranks(setup)
        nbytes = samples * setup.seq_len * setup.width * FLOAT_BYTES
        return (
            Copies(kind="activation", src=0, dst=1, nbytes=nbytes),
            Copies(kind="activation_grad", src=1, dst=0, nbytes=nbytes),
        )


def halves(setup: Setup) -> tuple[list[ParameterTensor], list[ParameterTensor]]:
    """The tensors on a rank's two devices; with an odd number of blocks the first has one more."""
    first_blocks = (max(tensor.unit for tensor in setup.tensors) + 1) // 2
    first: list[ParameterTensor] = []
    second: list[ParameterTensor] = []
    seen_blocks = False
    for tensor in setup.tensors:
        seen_blocks |= tensor.unit > 0
        # The root's tensors before the blocks are embeddings, those after them norm and head.
        early = tensor.unit <= first_blocks if tensor.unit else not seen_blocks
        (first if early else second).append(tensor)
    return first, second


def _ranks(setup: Setup) -> int:
    return setup.devices // DEVICES_A_RANK


SCHEMES: dict[str, Scheme] = {"ddp-mp": DdpTwoDevices()}
