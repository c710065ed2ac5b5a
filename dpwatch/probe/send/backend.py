"""Which backend the default process group really has, as `Hello.backend` says it."""

from __future__ import annotations

import sys
from typing import Any


def backend_of_world(dist: Any) -> str:
    """`gloo`, `nccl`, …; with several by device those that can be in use: `cpu:gloo,cuda:nccl`.

    `get_backend` says `undefined` where the script has left the choice to torch.

    Args:
        dist: `torch.distributed`, which is initialised.

    Raises:
        RuntimeError, ValueError, TypeError: It is not, any more.
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
    """Whether this process has turned to such devices; asking starts nothing."""
    if device == "cpu":
        return True
    is_initialized = getattr(
        getattr(sys.modules.get("torch"), device, None), "is_initialized", None
    )
    return is_initialized is None or bool(is_initialized())
