"""A rank's number and the devices it drives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpwatch.probe.api import ProbeLike
from dpwatch.wire.messages import DeviceInfo

from .config import TrainConfig, require


@dataclass(kw_only=True, slots=True, frozen=True)
class RankPlace:
    """A rank's position in the run.

    Attributes:
        rank: 0 … world_size − 1.
        world_size: Processes in the run.
        devices: The torch devices it drives, in order. Virtual devices are all `cpu` to torch.
        virtual: Whether devices live in host memory and compute on CPU cores.
    """

    rank: int
    world_size: int
    devices: tuple[torch.device, ...]
    virtual: bool

    @property
    def device(self) -> torch.device:
        """The first device, the only one of most strategies."""
        return self.devices[0]

    def load(self, tokens: Tensor, probe: ProbeLike) -> Tensor:
        """Moves a batch to the first device; a virtual one uses it from host memory as it is."""
        if self.virtual:
            return tokens
        with probe.phase("h2d"):
            return tokens.to(self.device, non_blocking=True)

    def title(self, config: TrainConfig) -> str:
        """Human-readable name of the run; says what virtual devices only simulate."""
        offloads = config.cpu_offload and self.virtual
        return f"{config.title}, CPU offload simulated" if offloads else config.title

    def describe(self, config: TrainConfig) -> list[DeviceInfo]:
        """The devices as reported to the probe; the host comes last, if it takes part."""
        first = self.rank * len(self.devices)
        if self.virtual:
            devices = [
                DeviceInfo(f"vgpu:{first + i}", "virtual", config.gpu_mem_bytes)
                for i in range(len(self.devices))
            ]
        else:
            devices = [_describe_cuda(device) for device in self.devices]
        if require(config.strategy).uses_host:
            devices.append(DeviceInfo("host", "host"))
        return devices


def find_rank_place(
    config: TrainConfig, *, rank: int, world_size: int, local_rank: int, local_ranks: int
) -> RankPlace:
    """Uses CUDA devices if this host has enough of them for all its ranks, else virtual ones."""
    mine = config.devices // world_size
    first = local_rank * mine
    if torch.cuda.is_available() and torch.cuda.device_count() >= local_ranks * mine:
        devices = tuple(torch.device("cuda", first + i) for i in range(mine))
        torch.cuda.set_device(devices[0])
        return RankPlace(rank=rank, world_size=world_size, devices=devices, virtual=False)
    devices = (torch.device("cpu"),) * mine
    return RankPlace(rank=rank, world_size=world_size, devices=devices, virtual=True)


def _describe_cuda(device: torch.device) -> DeviceInfo:
    facts = torch.cuda.get_device_properties(device)
    return DeviceInfo(str(device), "cuda", facts.total_memory, facts.name)
