"""A parameter server on device 0, which is also a worker; `servers` has the algorithm.

N devices in one process, P the parameters' bytes. Device 0 owns all parameters. Unlike in `dp`, the
others keep their replica from step to step and compute their own loss, so no logits are copied.

Bytes per step: pull (N − 1)P from device 0, push (N − 1)P to it, whatever the number of
micro-batches: device 0's traffic grows with N, that of the others stays at 2P.
Device 0 holds 4P (parameters, gradients, Adam's moments) and an incoming bucket (10 MiB, so P for
a small model); every other device 2P (its replica, its gradients); each its own activations.

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
    """All parameters belong to device 0."""
    return ParameterServers(config, place, probe, [0] * len(parameter_tensors(config)))
