"""A parameter server on the host; all devices are workers alike: `servers` says what they do.

N devices and the host in one process, P the parameters' bytes. The host owns all parameters: a
thread of its own sums the gradients in host memory and updates there.

Bytes a step: every device pulls P from the host and pushes P to it, over the host's link, through
which 2NP go in all. Devices are balanced, and each sends and receives the same however many
there are; what grows with N is the host's share of the work.
A device holds 2P (replica, gradients) and its activations. The host holds 4P (master parameters,
the gradients' sum, Adam's moments) and an incoming bucket. It is a row of its own (`host`), and no
device.

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
    """Every parameter is the host's, which comes after the last device."""
    host = len(place.devices)
    return ParameterServers(config, place, probe, [host] * len(parameter_tensors(config)))
