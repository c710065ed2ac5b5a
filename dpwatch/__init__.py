"""A live terminal dashboard for distributed PyTorch training.

One line in a training script streams what its ranks do to `dpwatch` in another terminal::

    import dpwatch

    with dpwatch.watch():
        train()

Importing this package does not import torch; `watch` does, at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpwatch.probe import step, watch

__version__ = "0.1.0"
__all__ = ["__version__", "step", "watch"]


def __getattr__(name: str) -> Any:
    if name in ("step", "watch"):
        from dpwatch import probe

        return getattr(probe, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
