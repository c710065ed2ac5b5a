"""A strategy's largest batch within its devices' memory, and which of them is full at it.

The search that finds it is the demo's; its table, its JSON and the screens all read this.
"""

from __future__ import annotations

import msgspec

ALIKE = 0.99
"""Of the peak of the device that ran out: from here on others are as full as it."""


class DevicePeak(msgspec.Struct, frozen=True):
    """What a device held at most, in a run of the largest batch that fits."""

    device: str
    peak_bytes: int
    capacity_bytes: int | None

    @property
    def fill(self) -> float | None:
        """The share of its memory that was held, None where it has no limit."""
        return self.peak_bytes / self.capacity_bytes if self.capacity_bytes else None


class LargestBatch(msgspec.Struct, frozen=True):
    """What was found for a strategy.

    Attributes:
        strategy: Its name.
        batch_per_gpu: The largest that fits, 0 where not even one sample does.
        global_batch: The same over all devices.
        ran_out: The device that lacked memory first at one sample more; null where the host's own
            memory ended the search, and larger ones may fit.
        devices: Peaks at the largest batch, empty where none fits.
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
        """The device that lacked memory first, else the first one; None where no batch fits."""
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
        """Whether another device is as full as the one that ran out, so that chance chose it."""
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
