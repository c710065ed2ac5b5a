"""The probe's interface: `ProbeLike`, and `NullProbe`, which does nothing.

Code that should run with and without a probe takes a `ProbeLike`. Importing this module does not
import torch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

_NOTHING = nullcontext()  # reusable and re-entrant, so one serves every call


@runtime_checkable
class ProbeLike(Protocol):
    """The probe's public interface. Methods never block, raise, or touch a tensor."""

    def lane(self, device: int) -> AbstractContextManager[None]:
        """While entered, this thread works for a device.

        Args:
            device: Index into the devices that `watch` was given.
        """

    def phase(self, name: str) -> AbstractContextManager[None]:
        """While entered, the thread's device is in a phase of the step.

        Args:
            name: `data`, `h2d`, `forward`, `backward` or `optimizer`. If phases nest, the outermost
                counts; any other name counts as `other`.
        """

    def transfer(self, kind: str, src: int, dst: int, nbytes: int) -> AbstractContextManager[None]:
        """Times one copy between two devices of this process.

        Args:
            kind: Purpose of the copy, as shown in Communication: `scatter`, `gather`, ….
            src: Index of the sending device.
            dst: Index of the receiving device.
            nbytes: Payload, in bytes.
        """

    def waiting(self) -> AbstractContextManager[None]:
        """While entered, this thread waits for another one: idle time, never GIL wait.

        Use it around a join, a queue's `get` or a future's `result`: from outside, the trainer's
        own waits look like any other blocked time.
        """

    def owns(self, device: int) -> AbstractContextManager[None]:
        """While entered, storages that this thread allocates belong to `device`."""

    def holds(self, device: int, *things: Module | Optimizer) -> None:
        """Declares that parameters, gradients and optimizer state of these live on `device`.

        Needed only in a process that drives several devices, before the first step, for what stays
        on a device other than the first. An optimizer's state is assumed to be where its parameter
        is.
        """

    def samples(self, n: int) -> None:
        """Adds to the number of samples that the thread's device processes in this step.

        Args:
            n: Batch elements; calls add up.
        """

    def loss(self, value: float) -> None:
        """Sets this step's loss.

        Args:
            value: The loss, in any unit; a later call in the same step replaces it.
        """

    def close(self, state: str = "finished", reason: str = "") -> None:
        """Ends the run; later calls do nothing.

        Args:
            state: `finished` or `failed`.
            reason: Why it failed, in one line.
        """

    def __enter__(self) -> ProbeLike: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None: ...


class NullProbe:
    """A probe that measures nothing: used with `DPWATCH=0`, or if the probe could not start."""

    def lane(self, device: int) -> AbstractContextManager[None]:
        """See `ProbeLike`."""
        return _NOTHING

    def phase(self, name: str) -> AbstractContextManager[None]:
        """See `ProbeLike`."""
        return _NOTHING

    def transfer(self, kind: str, src: int, dst: int, nbytes: int) -> AbstractContextManager[None]:
        """See `ProbeLike`."""
        return _NOTHING

    def waiting(self) -> AbstractContextManager[None]:
        """See `ProbeLike`."""
        return _NOTHING

    def owns(self, device: int) -> AbstractContextManager[None]:
        """See `ProbeLike`."""
        return _NOTHING

    def holds(self, device: int, *things: Module | Optimizer) -> None:
        """See `ProbeLike`."""

    def samples(self, n: int) -> None:
        """See `ProbeLike`."""

    def loss(self, value: float) -> None:
        """See `ProbeLike`."""

    def close(self, state: str = "finished", reason: str = "") -> None:
        """See `ProbeLike`."""

    def __enter__(self) -> NullProbe:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        return None
