"""What a trainer sees of the probe: `ProbeLike`, and `NullProbe`, which does nothing.

Code that is to run with and without a probe takes a `ProbeLike`. Importing this module imports
no torch.
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
    """The probe's public face. No method blocks, raises into the caller, or touches a tensor."""

    def lane(self, device: int) -> AbstractContextManager[None]:
        """This thread works for a device meanwhile.

        Args:
            device: Index into the devices that `watch` was given.
        """

    def phase(self, name: str) -> AbstractContextManager[None]:
        """The thread's device is in a phase of the step meanwhile.

        Args:
            name: `data`, `h2d`, `forward`, `backward` or `optimizer`. Of nested phases the
                outermost counts; any other name counts as `other`.
        """

    def transfer(self, kind: str, src: int, dst: int, nbytes: int) -> AbstractContextManager[None]:
        """Times one copy between two devices of this process.

        Args:
            kind: What it is for, as Communication shows it: `scatter`, `gather`, …
            src: Index of the device that sends …
            dst: … and of the one that receives.
            nbytes: Its payload, in bytes.
        """

    def waiting(self) -> AbstractContextManager[None]:
        """This thread waits for another one meanwhile: idle time, never GIL wait.

        To be held around a join, a queue's `get`, a future's `result`: waits of the trainer's own
        look like any other blocked time from outside.
        """

    def owns(self, device: int) -> AbstractContextManager[None]:
        """Storages this thread allocates meanwhile belong to `device`."""

    def holds(self, device: int, *things: Module | Optimizer) -> None:
        """Parameters, gradients and state of these lie on `device`; said before the first step.

        Only needed in a process that drives several devices, for what stays on one other than the
        first from step to step. An optimizer's state lies where its parameter does.
        """

    def samples(self, n: int) -> None:
        """Counts what the thread's device processes in this step.

        Args:
            n: Batch elements; calls add up.
        """

    def loss(self, value: float) -> None:
        """Tells this step's loss.

        Args:
            value: In whatever unit the script has; a later call in the same step replaces it.
        """

    def close(self, state: str = "finished", reason: str = "") -> None:
        """Ends the run; later calls do nothing.

        Args:
            state: `finished` or `failed`.
            reason: One line that says why it failed.
        """

    def __enter__(self) -> ProbeLike: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None: ...


class NullProbe:
    """A probe that measures nothing: with `DPWATCH=0`, or where the probe could not start."""

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
