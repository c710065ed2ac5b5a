"""A parameter server sharded over all devices; `servers` has the algorithm.

N devices in one process, P the parameters' bytes. Whole tensors are assigned, largest first, to the
device that owns the least so far (`plan.partition`). A device updates what it owns, so optimizer
state is sharded as in ZeRO-1, and push and pull together do what reduce-scatter and all-gather do
in a ring.

Bytes per step, with a part of about P/N each: a device pulls (N − 1)/N · P from the others, and
sends its own part to N − 1; pushes go the other way. So it sends and receives about
2(N − 1)/N · P, nearly the same for every device and every N.
A device holds 2P (parameters, of which it owns a part; gradients), Adam's moments for its part,
2P/N, an incoming bucket of at most its part, and its activations.

Virtual devices only: see docs/limits.md.
"""

from __future__ import annotations

from dpwatch.plan.partition import greedy_owners
from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..footprint import parameter_tensors
from ..rank_place import RankPlace
from .base import Strategy
from .servers import ParameterServers, check

__all__ = ["build", "check"]


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """Each parameter belongs to its device."""
    sizes = [tensor.elements for tensor in parameter_tensors(config)]
    return ParameterServers(config, place, probe, greedy_owners(sizes, len(place.devices)))
