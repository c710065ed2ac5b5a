"""A parameter server on device 0, which is a worker too: `servers` says what happens in a step.

N devices in one process, P the parameters' bytes. Device 0 owns all parameters. Unlike `dp` the
others keep their replica from step to step, and compute their own loss, so no logits travel.

Bytes a step: pull (N − 1)P out of device 0, push (N − 1)P into it, whatever the number of
micro-batches: device 0's traffic grows with N, another device's stays at 2P.
Device 0 holds 4P (parameters, gradients, Adam's moments) and an incoming bucket (10 MiB, so P for
a small model); another device 2P (its replica, its gradients); each its own activations.

Virtual devices only: see docs/limits.md.
"""

from __future__ import annotations

from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..footprint import parameter_tensors
from ..rank_place import RankPlace
from .base import Strategy
from .servers import ParameterServers, check

__all__ = ["build", "check"]


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """Every parameter is device 0's."""
    return ParameterServers(config, place, probe, [0] * len(parameter_tensors(config)))
