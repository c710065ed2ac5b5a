"""Model state a device by strategy: parameters, gradients and optimizer state, spread or not.

The ZeRO paper's table 1 in bytes (Rajbhandari et al., SC 2020), and DataParallel's beside it. What
depends on the batch (activations) and on how a library works (buckets, gathered units) is left out.
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
"""Which of parameters, gradients and optimizer state N devices share out among them."""

STRATEGIES = ("dp", *_SHARED)
"""Those that are told here; `zero3` and `fsdp1` hold what `fsdp` does."""


def a_device(strategy: str, whole: ModelState, devices: int) -> tuple[int, int]:
    """Bytes that device 0 holds, and each of the others.

    Args:
        strategy: One of `STRATEGIES`.
        whole: The model's.
        devices: N.

    Raises:
        ValueError: No such strategy, or no device.
    """
    if devices < 1:
        raise ValueError(f"there must be a device, not {devices}")
    if strategy == "dp":  # device 0 updates; the others get the parameters anew at every step
        first = whole.params + whole.grads + whole.optimizer
        return first, whole.params + whole.grads
    if strategy not in _SHARED:
        raise ValueError(f"no figures for {strategy!r}")
    parts = (whole.params, whole.grads, whole.optimizer)
    shared = _SHARED[strategy]
    each = round(sum(Fraction(p, devices if s else 1) for p, s in zip(parts, shared, strict=True)))
    return each, each
