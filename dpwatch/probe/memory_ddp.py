"""DDP's gradient buckets: a second copy of the gradients that no Python object holds.

The reducer allocates its buckets in C++, first when DDP is built, mostly before the probe looks,
and anew in its second iteration. Those made during a sampled step are seen like any storage; of
the others DDP's own logging tells the sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch

from dpwatch.probe.memory_events import Entry
from dpwatch.probe.memory_mode import StorageTracker


class Buckets:
    """Counts the buckets nobody saw being made as one storage, until they are replaced in sight."""

    def __init__(self, tracker: StorageTracker) -> None:
        self._tracker = tracker
        self._unseen_bytes: dict[int, int] = {}
        self._unseen: dict[int, Entry] = {}

    def look(self, models: Iterable[torch.nn.Module]) -> None:
        """Before a sampled step: works out what there is beyond the buckets seen."""
        logged: dict[int, int] = {}
        for ddp in _instances(models):
            first = next((p for p in ddp.parameters() if p.requires_grad), None)
            device = self._tracker.device_of(first)
            logged[device] = logged.get(device, 0) + _logged_bytes_of(ddp)
        self._unseen_bytes = {
            device: nbytes - self.seen_bytes(device) for device, nbytes in logged.items()
        }

    def begin(self) -> None:
        """At its start: counts that as held."""
        self._unseen = {}
        for device, nbytes in self._unseen_bytes.items():
            if nbytes > 0:
                entry = self._unseen[device] = Entry(device, nbytes, in_backward=False)
                entry.bucket = True
                self._tracker.events.append((entry, entry.nbytes))

    def settle(self) -> None:
        """At its end: buckets made meanwhile replaced the unseen ones, just before the first."""
        events, unseen = self._tracker.events, dict(self._unseen)
        for at, (subject, _) in enumerate(list(events)):
            fresh = isinstance(subject, Entry) and subject.bucket and not subject.carried
            if fresh and subject not in self._unseen.values():
                replaced = unseen.pop(subject.device, None)
                if replaced is not None:
                    inserted = len(self._unseen) - len(unseen) - 1
                    events.insert(at + inserted, (replaced, -replaced.nbytes))

    def seen_bytes(self, device: int | None = None) -> int:
        """Bytes of living buckets that were seen being made, on one device or on all."""
        return sum(
            entry.nbytes
            for entry in self._tracker.alive()
            if entry.bucket and device in (None, entry.device)
        )


def logged_bytes(models: Iterable[torch.nn.Module]) -> int:
    """What DDP's logging says its buckets hold beside `.grad`.

    With `gradient_as_bucket_view=True` the gradients lie in the buckets, and nothing is beside
    them.

    Args:
        models: The outermost modules; `DistributedDataParallel` is looked for inside them too.

    Returns:
        Bytes, over all instances found; 0 without any.
    """
    return sum(_logged_bytes_of(ddp) for ddp in _instances(models))


def _instances(models: Iterable[torch.nn.Module]) -> list[Any]:
    parallel = sys.modules.get("torch.nn.parallel.distributed")
    if parallel is None:
        return []
    return [
        module
        for model in models
        for module in model.modules()
        if isinstance(module, parallel.DistributedDataParallel)
    ]


def _logged_bytes_of(ddp: Any) -> int:
    if ddp.gradient_as_bucket_view:
        return 0
    logged = ddp._get_ddp_logging_data()
    # Up to one step late about a rebuild, but the buckets' sum stays the same.
    sizes = logged.get("rebuilt_bucket_sizes") or logged.get("bucket_sizes") or ""
    return sum(int(size) for size in str(sizes).split(",") if size.strip())
