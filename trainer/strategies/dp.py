"""`nn.DataParallel`, step by step: one process, a thread per device, device 0 in charge.

N devices, global batch B, P the parameters' bytes. Device 0 owns the model. Each step:

1. Scatter: device 0 sends every device its B/N samples.
2. Replicate: it sends every other device a full copy of the parameters.
3. Parallel forward, each device in its own thread (all of them under one GIL).
4. Gather: all outputs (logits, B·T·V floats) are collected on device 0 …
5. … which alone computes the loss over the global batch, and its gradient with respect to the
   logits.
6. Scatter of that gradient: each device gets its samples' part.
7. Parallel backward, each device in its own thread.
8. Reduce: every other device's gradients are sent to device 0 and summed there.
9. The optimizer's update, on device 0 alone. The replicas are discarded.

With gradient accumulation steps 1 to 8 are done for each micro-batch, with new replicas each time.

Bytes per step: scatter (N − 1)/N of the samples, replicate (N − 1)P, gather and scatter of
gradients (N − 1)/N of the logits each, reduce (N − 1)P: all of it leaves or enters device 0. Device
0 holds 4P (parameters, gradients, Adam's moments), all logits, their gradient, its own activations,
and one incoming bucket (torch's 10 MiB, so P for a small model). Every other device holds 2P (a
replica and its gradients), its slice's logits and activations, and nothing between steps.

On CUDA (`dp_cuda`) torch's own module does this. On the CPU that module does nothing, so the same
steps are done here by hand, with real copies between virtual devices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..model import build_model, next_token_loss
from ..rank_place import RankPlace
from ..virtual import (
    DeviceThreads,
    Replica,
    add_gradients,
    buckets,
    copy_into,
    copy_to,
    gradient_of,
)
from . import dp_cuda
from .base import State, Strategy, autocast, make_optimizer

REDUCE_BUCKET_BYTES = 10 << 20
"""Bucket size of `torch.nn.parallel.comm.reduce_add_coalesced`."""


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """`torch.nn.DataParallel` on CUDA devices, its algorithm by hand on virtual ones."""
    if not place.virtual and len(place.devices) > 1:
        return dp_cuda.build(config, place, probe)
    return VirtualDataParallel(config, place, probe)


class VirtualDataParallel:
    """DataParallel's algorithm on the virtual devices of `place`."""

    def __init__(self, config: TrainConfig, place: RankPlace, probe: ProbeLike) -> None:
        self._config = config
        self._place = place
        self._probe = probe
        self._devices = range(len(place.devices))
        self._model = build_model(config)
        self._replicas = [Replica(config) for _ in self._devices[1:]]
        self._optimizer = make_optimizer(self._model.parameters(), config)
        self._threads = DeviceThreads(len(self._devices), probe)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Strategy`; the loss is the global batch's."""
        self._optimizer.zero_grad(set_to_none=True)
        parts = tokens.chunk(self._config.grad_accum)
        loss = torch.stack([self._forward_backward(part) for part in parts]).mean()
        self._probe.loss(loss.item())
        self._optimizer.step()
        return loss

    def _forward_backward(self, tokens: Tensor) -> Tensor:
        with self._probe.phase("forward"):
            inputs = self._scatter(tokens[:, :-1])
            self._replicate()
            outputs = self._parallel_forward(inputs)
            logits = self._gather(outputs)
            loss = next_token_loss(logits, tokens[:, 1:])
        with self._probe.phase("backward"):
            torch.autograd.backward(loss / self._config.grad_accum)
            self._parallel_backward(outputs, self._scatter_gradient(logits))
            self._reduce()
        for replica in self._replicas:
            replica.drop()
        return loss.detach()

    def _scatter(self, batch: Tensor) -> list[Tensor]:
        parts = batch.chunk(len(self._devices))
        return [parts[0]] + [
            copy_to(self._probe, [parts[device]], "scatter", 0, device)[0]
            for device in self._devices[1:]
        ]

    def _replicate(self) -> None:
        """Copies of the parameters for devices 1 … N − 1; device 0 uses the model itself."""
        values = list(self._model.parameters())
        for device, replica in enumerate(self._replicas, start=1):
            replica.fill(copy_to(self._probe, values, "replicate", 0, device))

    def _parallel_forward(self, inputs: list[Tensor]) -> list[Tensor]:
        modules = [self._model, *(replica.module for replica in self._replicas)]

        def forward(device: int) -> Tensor:
            self._probe.samples(len(inputs[device]))
            with autocast(self._config, self._place):
                output: Tensor = modules[device](inputs[device])
            return output

        return self._threads.run("forward", forward)

    def _gather(self, outputs: list[Tensor]) -> Tensor:
        """All logits on device 0, as a leaf: a backward over all would run on one thread."""
        sizes = [len(output) for output in outputs]
        logits = outputs[0].new_empty(sum(sizes), *outputs[0].shape[1:])
        targets = torch.split(logits, sizes)
        for device, (target, output) in enumerate(zip(targets, outputs, strict=True)):
            if device == 0:
                target.copy_(output.detach())
            else:
                copy_into(self._probe, [target], [output], "gather", device, 0)
        return logits.requires_grad_()

    def _scatter_gradient(self, logits: Tensor) -> list[Tensor]:
        assert logits.grad is not None
        parts = logits.grad.chunk(len(self._devices))
        return [parts[0]] + [
            copy_to(self._probe, [parts[device]], "scatter_grad", 0, device)[0]
            for device in self._devices[1:]
        ]

    def _parallel_backward(self, outputs: list[Tensor], gradients: list[Tensor]) -> None:
        def backward(device: int) -> None:
            torch.autograd.backward(outputs[device], gradients[device])

        self._threads.run("backward", backward)

    def _reduce(self) -> None:
        """Sums the replicas' gradients into the model's, one device and one bucket at a time."""
        for device, replica in enumerate(self._replicas, start=1):
            mine = self._model.parameters()
            theirs = [gradient_of(parameter) for parameter in replica.module.parameters()]
            for bucket in buckets(theirs, REDUCE_BUCKET_BYTES):
                add_gradients(mine, copy_to(self._probe, bucket, "reduce", device, 0))

    def parameters(self) -> dict[str, Tensor]:
        """See `Strategy`."""
        return {name: value.detach() for name, value in self._model.named_parameters()}

    def state(self) -> State:
        """See `Strategy`: everything is on device 0."""
        return {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: State) -> None:
        """See `Strategy`."""
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])

    def close(self) -> None:
        """See `Strategy`."""
        self._threads.close()
