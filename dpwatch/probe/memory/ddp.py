"""DDP's gradient buckets: a second copy of the gradients that no Python object holds.

The reducer allocates its buckets in C++: first when DDP is built, usually before the probe is
active, and again in its second iteration. Those allocated in a step that the ledger follows are
tracked like any storage; the sizes of the others come from DDP's own logging.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from dpwatch.probe.memory.dispatch_mode import StorageTracker
from dpwatch.probe.memory.events import Entry
from dpwatch.probe.memory.walk import (
    attributes_of,
    first_trained,
    modules_of,
    no_torch_function,
    place_of,
)


class BucketSizes:
    """Reads each DDP instance's logging once: that releases the GIL, and the sum never changes."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], torch.device | None, int | None]] = {}

    def on(self, device: torch.device, modules: Iterable[torch.nn.Module]) -> int | None:
        """Bytes of all buckets beside `.grad` on a device; None if one does not report them."""
        total = 0
        for ddp in _instances(modules):
            known = self._known.get(id(ddp))
            if known is None or known[0]() is not ddp:
                known = self._known[id(ddp)] = _asked(ddp)
            _, where, nbytes = known
            if where == device:
                if nbytes is None:
                    return None
                total += nbytes
        return total


def _asked(ddp: Any) -> tuple[weakref.ref[Any], torch.device | None, int | None]:
    with no_torch_function():
        first = first_trained(ddp)
        where = None if first is None else place_of(first)
    return weakref.ref(ddp), where, logged_bytes_of(ddp)


class Buckets:
    """Counts untracked buckets as one storage, until tracked ones replace them."""

    def __init__(self, tracker: StorageTracker) -> None:
        self._tracker = tracker
        self._unseen_bytes: dict[int, int] = {}
        self._unseen: dict[int, Entry] = {}

    def scan(self, models: Iterable[torch.nn.Module]) -> None:
        """Before a sampled step: computes the size of the untracked buckets."""
        logged: dict[int, int] = {}
        for ddp in _instances(modules_of(models)):
            with no_torch_function():
                device = self._tracker.device_of(first_trained(ddp))
            logged[device] = logged.get(device, 0) + (logged_bytes_of(ddp) or 0)
        self._unseen_bytes = {
            device: nbytes - self.seen_bytes(device) for device, nbytes in logged.items()
        }

    def begin(self) -> None:
        """At its start: counts them as held."""
        self._unseen = {}
        for device, nbytes in self._unseen_bytes.items():
            if nbytes > 0:
                entry = self._unseen[device] = Entry(device, nbytes, in_backward=False)
                entry.bucket = True
                self._tracker.events.append((entry, entry.nbytes))

    def finish(self) -> None:
        """At its end: new buckets replace the untracked ones, just before their allocation."""
        events, unseen = self._tracker.events, dict(self._unseen)
        for at, (subject, _) in enumerate(list(events)):
            fresh = isinstance(subject, Entry) and subject.bucket and not subject.carried
            if fresh and subject not in self._unseen.values():
                replaced = unseen.pop(subject.device, None)
                if replaced is not None:
                    inserted = len(self._unseen) - len(unseen) - 1
                    events.insert(at + inserted, (replaced, -replaced.nbytes))

    def seen_bytes(self, device: int | None = None) -> int:
        """Bytes of living buckets whose allocation was tracked, on one device or on all."""
        return sum(
            entry.nbytes
            for entry in self._tracker.alive()
            if entry.bucket and device in (None, entry.device)
        )


def logged_bytes(models: Iterable[torch.nn.Module]) -> int:
    """Bytes of buckets beside `.grad` according to DDP's logging.

    Args:
        models: The outermost modules; `DistributedDataParallel` is searched for inside them too.

    Returns:
        Bytes, over all instances found; 0 without any.
    """
    return sum(logged_bytes_of(ddp) or 0 for ddp in _instances(modules_of(models)))


def logged_bytes_of(ddp: Any) -> int | None:
    """The same for one instance, None if it does not report them.

    With `gradient_as_bucket_view=True` the gradients are views of the buckets, and there is no
    second copy.
    """
    attributes = attributes_of(ddp)
    if attributes.get("gradient_as_bucket_view"):
        return 0
    ask = getattr(attributes.get("logger"), "_get_ddp_logging_data", None)
    if ask is None:
        return None
    logged = ask().strs_map
    # Up to one step late about a rebuild, but the buckets' sum stays the same.
    sizes = logged.get("rebuilt_bucket_sizes") or logged.get("bucket_sizes")
    return None if sizes is None else sum(int(s) for s in str(sizes).split(",") if s.strip())


def _instances(modules: Iterable[torch.nn.Module]) -> Iterator[Any]:
    parallel = sys.modules.get("torch.nn.parallel.distributed")
    if parallel is not None:
        kind = parallel.DistributedDataParallel
        yield from (module for module in modules if kind in type(module).__mro__)
