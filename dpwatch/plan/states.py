"""Model state per device by strategy: parameters, gradients and optimizer state, sharded or not.

Table 1 of the ZeRO paper in bytes (Rajbhandari et al., SC 2020), with DataParallel for comparison.
What depends on the batch (activations) and on the implementation (buckets, gathered units) is left
out.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(kw_only=True, slots=True, frozen=True)
class ModelState:
    """Bytes of a whole model's state.

    Attributes:
        params: Its parameters.
        grads: Their gradients.
        optimizer: All of the optimizer's state.
    """

    params: int
    grads: int
    optimizer: int


_SHARED = {
    "ddp": (False, False, False),
    "zero1": (False, False, True),
    "zero2": (False, True, True),
    "fsdp": (True, True, True),
}
"""Which of parameters, gradients and optimizer state are sharded over N devices."""

STRATEGIES = ("dp", *_SHARED)
"""The strategies covered here; `zero3` and `fsdp1` hold what `fsdp` does."""


def bytes_per_device(strategy: str, whole: ModelState, devices: int) -> tuple[int, int]:
    """Bytes that device 0 holds, and that each of the others holds.

    Args:
        strategy: One of `STRATEGIES`.
        whole: The model's state.
        devices: N.

    Raises:
        ValueError: Unknown strategy, or no device.
    """
    if devices < 1:
        raise ValueError(f"there must be a device, not {devices}")
    if strategy == "dp":  # device 0 updates; the others get the parameters in every step
        first = whole.params + whole.grads + whole.optimizer
        return first, whole.params + whole.grads
    if strategy not in _SHARED:
        raise ValueError(f"no figures for {strategy!r}")
    parts = (whole.params, whole.grads, whole.optimizer)
    shared = _SHARED[strategy]
    each = round(sum(Fraction(p, devices if s else 1) for p, s in zip(parts, shared, strict=True)))
    return each, each
