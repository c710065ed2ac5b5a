"""Virtual devices: parts of host memory, each with its own worker thread.

A copy between two of them really copies bytes; the probe records it and learns whose memory it
fills. Device 0's thread is the one that trains; the others live as long as the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor, nn

from dpwatch.probe.api import ProbeLike

from .config import TrainConfig
from .model import LanguageModel

T = TypeVar("T")


def copy_to(
    probe: ProbeLike, tensors: Sequence[Tensor], kind: str, src: int, dst: int
) -> list[Tensor]:
    """Copies `tensors`, detached, to `dst`'s memory, as one transfer of all their bytes.

    Args:
        probe: Records the copy and its owner.
        tensors: Tensors on `src`.
        kind: Purpose, one of those listed in `wire.messages.Transfer`.
        src: Index of the sending device.
        dst: Index of the receiving device.
    """
    nbytes = sum(tensor.nbytes for tensor in tensors)
    with probe.transfer(kind, src, dst, nbytes), probe.owns(dst):
        return [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]


def copy_into(
    probe: ProbeLike,
    targets: Sequence[Tensor],
    sources: Sequence[Tensor],
    kind: str,
    src: int,
    dst: int,
) -> None:
    """Copies `sources` on `src` into `targets`, existing memory of `dst`, as one transfer."""
    with probe.transfer(kind, src, dst, sum(source.nbytes for source in sources)):
        for target, source in zip(targets, sources, strict=True):
            target.detach().copy_(source.detach())


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """The gradient that backward left in a parameter."""
    assert parameter.grad is not None, "a parameter took no part in the loss"
    return parameter.grad


def add_gradients(parameters: Iterator[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Adds to the gradients of the next parameters; one without a gradient takes it over.

    On return no local variable keeps one of `gradients` alive while the next ones arrive.
    """
    for gradient in gradients:
        parameter = next(parameters)
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad.add_(gradient)


class Replica:
    """A module with the model's code, whose parameters come and go by name.

    Between `fill` and `drop` it computes what the model would. Its parameters are leaves of their
    own, so backward leaves this device's gradients in them.
    """

    def __init__(self, config: TrainConfig) -> None:
        with torch.device("meta"):  # the model's code without its memory
            self.module = LanguageModel(config)
        owners = [
            (path.rpartition(".")[0], path.rpartition(".")[2])
            for path, _ in self.module.named_parameters()
        ]
        self._places = [(self.module.get_submodule(owner), name) for owner, name in owners]

    def fill(self, values: Sequence[Tensor]) -> None:
        """Sets these tensors as parameters, in the order of `model.parameters()`."""
        for (module, name), value in zip(self._places, values, strict=True):
            module._parameters[name] = nn.Parameter(value)

    def drop(self) -> None:
        """Drops parameters and gradients."""
        for module, name in self._places:
            module._parameters[name] = None


class DeviceThreads:
    """One persistent thread for each of devices 1 … N − 1; device 0 uses the caller's thread.

    A host that takes part is one more, after the last.
    """

    def __init__(self, devices: int, probe: ProbeLike) -> None:
        self._probe = probe
        self._workers = [
            ThreadPoolExecutor(
                max_workers=1,
                thread_name_prefix=f"vgpu:{device}",
                initializer=torch.set_num_threads,
                initargs=(1,),
            )
            for device in range(1, devices)
        ]

    def run(
        self,
        phase: str | None,
        job: Callable[[int], T],
        devices: Sequence[int] | None = None,
    ) -> list[T]:
        """Calls `job(device)` for devices in parallel; returns results in their order.

        Args:
            phase: Phase of their lanes meanwhile, None for jobs that declare it themselves. If the
                caller's own lane is in a phase already, that one counts.
            job: Does one device's part.
            devices: The devices; None means all.

        Raises:
            Exception: What the first failing job raised, once all have ended.
        """
        chosen = range(len(self._workers) + 1) if devices is None else devices
        futures = {
            device: self._workers[device - 1].submit(self._run_one, phase, job, device)
            for device in chosen
            if device
        }
        results = {}
        try:
            if 0 in chosen:
                results[0] = self._run_one(phase, job, 0)
        finally:
            with self._probe.waiting():
                for future in futures.values():
                    future.exception()
        results |= {device: future.result() for device, future in futures.items()}
        return [results[device] for device in chosen]

    def _run_one(self, phase: str | None, job: Callable[[int], T], device: int) -> T:
        with self._probe.lane(device), self._in(phase):
            return job(device)

    def _in(self, phase: str | None) -> AbstractContextManager[None]:
        """Declares the phase for the lane that the thread is in by now."""
        return nullcontext() if phase is None else self._probe.phase(phase)

    def close(self) -> None:
        """Ends the threads, which are idle between steps."""
        for worker in self._workers:
            worker.shutdown()

    def __enter__(self) -> DeviceThreads:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def buckets(tensors: Sequence[Tensor], limit_bytes: int) -> Iterator[list[Tensor]]:
    """Consecutive groups of at most `limit_bytes` (a larger tensor is a group of its own)."""
    group: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if group and size + tensor.nbytes > limit_bytes:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.nbytes
    if group:
        yield group
