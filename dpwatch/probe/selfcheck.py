"""`python -m dpwatch.probe.selfcheck`: what the probe finds in this torch, for `dpwatch doctor`.

It prints one JSON object per line as results come in, so that a check that hangs or crashes costs
only its own line. It opens no socket beyond loopback and starts no probe.
"""

from __future__ import annotations

import json
from typing import Any


def main() -> None:
    """Reports on torch, then tests the collectives observer on a group of one rank."""
    import os

    import torch
    import torch.distributed as dist

    from dpwatch.probe.collectives import flight_recorder

    _tell(
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        gpus=torch.cuda.device_count(),
        gloo=dist.is_available() and dist.is_gloo_available(),
        nccl=dist.is_available() and dist.is_nccl_available(),
    )
    if dist.is_available() and dist.is_nccl_available():
        _tell(durations=flight_recorder.obstacle(os.environ) or flight_recorder.Obstacle(""))
    if dist.is_available() and dist.is_gloo_available():
        _tell(**try_collectives())


def try_collectives() -> dict[str, Any]:
    """Issues collectives from Python and from C++ (DDP's reducer) under the observer.

    Returns:
        `capture`, as in `Hello`, and whether each of the two was really observed.
    """
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from dpwatch.probe.collectives.observer import start

    observer = start(lambda record: None, lambda: 0)
    try:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            before = observer.issued
            dist.all_reduce(torch.ones(1))
            from_python = observer.issued > before
            model = DistributedDataParallel(torch.nn.Linear(1, 1))
            before = observer.issued
            model(torch.ones(1, 1)).sum().backward()
            from_native = observer.issued > before
        finally:
            dist.destroy_process_group()
        return {"capture": observer.capture, "python": from_python, "native": from_native}
    finally:
        observer.close()


def _tell(**found: Any) -> None:
    print(json.dumps(found), flush=True)  # noqa: T201 - its output is what it is for


if __name__ == "__main__":
    main()
