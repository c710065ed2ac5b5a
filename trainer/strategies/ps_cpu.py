"""A parameter server on the host, with all devices as workers; `servers` has the algorithm.

N devices and the host in one process, P the parameters' bytes. The host owns all parameters: a
thread of its own sums the gradients in host memory and updates there.

Bytes per step: every device pulls P from the host and pushes P to it, so 2NP pass the host's link
in all. Devices are balanced, and their traffic does not depend on N; the host's share of the work
grows with N.
A device holds 2P (replica, gradients) and its activations. The host holds 4P (master parameters,
the sum of gradients, Adam's moments) and an incoming bucket. It has its own row (`host`), but is
not a device.

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
    """All parameters belong to the host, which comes after the last device."""
    host = len(place.devices)
    return ParameterServers(config, place, probe, [host] * len(parameter_tensors(config)))
