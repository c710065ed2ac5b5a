"""The backend that the default process group really uses, as in `Hello.backend`."""

from __future__ import annotations

import sys
from typing import Any


def backend_of_world(dist: Any) -> str:
    """`gloo`, `nccl`, …; with several by device, those that may be in use: `cpu:gloo,cuda:nccl`.

    `get_backend` returns `undefined` if the script left the choice to torch.

    Args:
        dist: `torch.distributed`, initialized.

    Raises:
        RuntimeError, ValueError, TypeError: It is no longer initialized.
    """
    config = getattr(dist, "get_backend_config", None)
    pairs = [] if config is None else [pair.partition(":") for pair in str(config()).split(",")]
    by_device = {device: backend for device, _, backend in pairs if backend}
    if not by_device:
        return str(dist.get_backend())
    used = {device: by_device[device] for device in by_device if _is_used(device)} or by_device
    names = list(dict.fromkeys(used.values()))
    if len(names) == 1:
        return names[0]
    return ",".join(f"{device}:{backend}" for device, backend in used.items())


def _is_used(device: str) -> bool:
    """Whether this process has used such devices; checking initializes nothing."""
    if device == "cpu":
        return True
    is_initialized = getattr(
        getattr(sys.modules.get("torch"), device, None), "is_initialized", None
    )
    return is_initialized is None or bool(is_initialized())
