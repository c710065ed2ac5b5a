"""A strategy's largest batch that fits into memory, and which device limits it.

The demo searches for it; its table, its JSON and the screens read this.
"""

from __future__ import annotations

import msgspec

ALIKE = 0.99
"""Devices with at least this share of the limiting device's peak count as equally full."""


class DevicePeak(msgspec.Struct, frozen=True):
    """A device's peak in a run with the largest batch that fits."""

    device: str
    peak_bytes: int
    capacity_bytes: int | None

    @property
    def fill(self) -> float | None:
        """The share of its memory in use at the peak, None if it has no limit."""
        return self.peak_bytes / self.capacity_bytes if self.capacity_bytes else None


class LargestBatch(msgspec.Struct, frozen=True):
    """The result for one strategy.

    Attributes:
        strategy: Its name.
        batch_per_gpu: The largest batch that fits, 0 if not even one sample does.
        global_batch: The same over all devices.
        ran_out: The device that ran out of memory first with one sample more; null if the host's
            own memory ended the search, so that larger batches may fit.
        devices: Peaks at the largest batch, empty if none fits.
        tries: How many runs it took.
    """

    strategy: str
    batch_per_gpu: int
    global_batch: int
    ran_out: str | None
    devices: list[DevicePeak]
    tries: int

    @property
    def limiting(self) -> DevicePeak | None:
        """The device that ran out of memory first, else the first one; None if no batch fits."""
        named = (each for each in self.devices if each.device == self.ran_out)
        return next(named, self.devices[0] if self.devices else None)

    @property
    def fullest_other(self) -> DevicePeak | None:
        """The fullest of the other devices that have a limit."""
        limiting = self.limiting
        others = [each for each in self.devices if each is not limiting and each.capacity_bytes]
        return max(others, key=lambda each: each.peak_bytes, default=None)

    @property
    def all_alike(self) -> bool:
        """Whether another device is as full as the one that ran out, so that either could have."""
        limiting, other = self.limiting, self.fullest_other
        if limiting is None or other is None:
            return False
        return other.peak_bytes >= ALIKE * limiting.peak_bytes

    @property
    def who(self) -> str:
        """What ended the search: a device, `all alike` or `this host`."""
        if self.ran_out is None:
            return "this host"
        return "all alike" if self.all_alike else self.ran_out
