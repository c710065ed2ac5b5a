"""What the parameter servers share: workers that compute, and servers that own parameters.

Every worker (a device with its own thread) keeps a replica of the model. Each parameter tensor is
owned by one server: one of the workers, or the host. On a worker that owns it, the replica's tensor
is the master itself; elsewhere it is a copy. A step, with N workers:

1. Pull: every worker copies the parameters it does not own from their owners into its replica.
2. Compute: it takes its own samples, and runs forward, loss and backward on them. With gradient
   accumulation it processes all its micro-batches; nothing is sent in between.
3. Push: each server takes the other workers' gradients of its parameters, one bucket at a time and
   always in the same order, and adds them to its own (the host has none, so the first to arrive
   starts the sum); then it divides by N. Beside the sum there is only one bucket, never N copies.
4. Update: each server steps an optimizer over what it owns, and nothing else.

It is synchronous: no worker pulls before every server has updated, so it computes exactly what one
device would, unlike the asynchronous servers of the literature (Li et al., "Scaling Distributed
Machine Learning with the Parameter Server", OSDI 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpwatch.probe.api import ProbeLike

from ..config import ConfigError, TrainConfig
from ..model import LanguageModel, build_model, next_token_loss
from ..rank_place import RankPlace
from ..virtual import DeviceThreads, add_gradients, buckets, copy_into, copy_to, gradient_of
from .base import State, autocast, make_optimizer

PUSH_BUCKET_BYTES = 10 << 20
"""Bytes that a server takes at a time: as many as `dp` reduces at once."""


class JointUpdate(Optimizer):
    """One step of several devices' optimizers, which looks like one optimizer from outside.

    Args:
        optimizers: By device.
        run: Runs a job for each of the given devices, on its thread, and returns when all are done.
    """

    def __init__(
        self,
        optimizers: dict[int, Optimizer],
        run: Callable[[Callable[[int], object], Sequence[int]], object],
    ) -> None:
        groups = (group for optimizer in optimizers.values() for group in optimizer.param_groups)
        super().__init__([p for group in groups for p in group["params"]], {})
        self._by_device = optimizers
        self._run = run

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every device's parameters with its own optimizer."""
        self._run(lambda device: self._by_device[device].step(), list(self._by_device))

    def state_dict(self) -> State:
        """Each optimizer's state, by device."""
        return {
            str(device): optimizer.state_dict() for device, optimizer in self._by_device.items()
        }

    def load_state_dict(self, state_dict: State) -> None:
        """Restores a `state_dict`."""
        for device, optimizer in self._by_device.items():
            optimizer.load_state_dict(state_dict[str(device)])


def check(config: TrainConfig, place: RankPlace) -> None:
    """Rejects devices that are not virtual (`ConfigError`)."""
    if not place.virtual:
        raise ConfigError(
            f"{config.strategy} supports virtual devices only, and this host has GPUs; "
            "hide them with CUDA_VISIBLE_DEVICES= or choose ddp"
        )


class ParameterServers:
    """The algorithm above on the virtual devices of `place`.

    Args:
        owners: For each parameter, in the order of `model.parameters()`, the device that owns it;
            the number after the last worker's is the host.
    """

    def __init__(
        self, config: TrainConfig, place: RankPlace, probe: ProbeLike, owners: Sequence[int]
    ) -> None:
        self._config = config
        self._place = place
        self._probe = probe
        self._workers = range(len(place.devices))
        self._servers = sorted(set(owners))
        self._owned = {
            server: [at for at, owner in enumerate(owners) if owner == server]
            for server in self._servers
        }
        self._models = [self._model_on(device) for device in range(self._places())]
        self._parameters = [list(model.parameters()) for model in self._models]
        self._names = [name for name, _ in self._models[0].named_parameters()]
        self._masters = [self._parameters[owner][at] for at, owner in enumerate(owners)]
        self._threads = DeviceThreads(self._places(), probe)
        self._optimizer = JointUpdate(
            {server: self._optimizer_on(server) for server in self._servers},
            lambda job, devices: self._threads.run("optimizer", job, devices),
        )

    def _places(self) -> int:
        """Number of workers, plus the host if it is a server."""
        return max(len(self._workers), self._servers[-1] + 1)

    def _model_on(self, device: int) -> LanguageModel:
        with self._probe.owns(device):
            model = build_model(self._config)
        self._probe.holds(device, model)
        return model

    def _optimizer_on(self, server: int) -> Optimizer:
        mine = [self._parameters[server][at] for at in self._owned[server]]
        optimizer = make_optimizer(mine, self._config)
        self._probe.holds(server, optimizer)
        return optimizer

    def step(self, tokens: Tensor) -> Tensor:
        """See `Strategy`; the loss is the global batch's."""
        for model in self._models:
            model.zero_grad(set_to_none=True)
        workers = len(self._workers)
        parts = [part.chunk(workers) for part in tokens.chunk(self._config.grad_accum)]
        losses = self._threads.run(
            None, lambda device: self._work(device, [part[device] for part in parts]), self._workers
        )
        loss = torch.stack(losses).mean()
        self._probe.loss(loss.item())
        self._threads.run("backward", self._collect, self._servers)
        self._optimizer.step()
        return loss

    def _work(self, device: int, micro_batches: Sequence[Tensor]) -> Tensor:
        """A worker's part of a step, from pull to its gradients. Returns: its mean loss."""
        with self._probe.phase("forward"):
            self._pull(device)
        losses = []
        for tokens in micro_batches:
            self._probe.samples(len(tokens))
            with self._probe.phase("forward"), autocast(self._config, self._place):
                loss = next_token_loss(self._models[device](tokens[:, :-1]), tokens[:, 1:])
            torch.autograd.backward(loss / self._config.grad_accum)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _pull(self, device: int) -> None:
        for server in self._servers:
            if server != device:
                copies, masters = (self._of(server, on) for on in (device, server))
                copy_into(self._probe, copies, masters, "pull", server, device)

    def _collect(self, server: int) -> None:
        """Computes the mean of all workers' gradients in the server's own."""
        mine = self._of(server, server)
        for worker in self._workers:
            if worker == server:
                continue
            theirs = [gradient_of(parameter) for parameter in self._of(server, worker)]
            targets = iter(mine)
            for bucket in buckets(theirs, PUSH_BUCKET_BYTES):
                add_gradients(targets, copy_to(self._probe, bucket, "push", worker, server))
        for parameter in mine:
            gradient_of(parameter).div_(len(self._workers))

    def _of(self, server: int, device: int) -> list[nn.Parameter]:
        """A device's copies of the parameters that a server owns."""
        return [self._parameters[device][at] for at in self._owned[server]]

    def parameters(self) -> dict[str, Tensor]:
        """See `Strategy`: the masters; replicas lag by one update until they are pulled."""
        return {
            name: master.detach() for name, master in zip(self._names, self._masters, strict=True)
        }

    def state(self) -> State:
        """See `Strategy`: what the servers own, since replicas are pulled again."""
        return {"model": self.parameters(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: State) -> None:
        """See `Strategy`."""
        for name, master in self.parameters().items():
            master.copy_(state["model"][name])
        self._optimizer.load_state_dict(state["optimizer"])

    def close(self) -> None:
        """See `Strategy`."""
        self._threads.close()
