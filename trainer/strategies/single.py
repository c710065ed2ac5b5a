"""One device trains alone: the baseline for all others.

1. Forward and loss over the global batch.
2. Backward.
3. The optimizer's update.

The device holds, in units of the parameters' bytes P: parameters P, gradients P, Adam's moments
2P, and the activations of the whole global batch. It sends nothing.
"""

from __future__ import annotations

from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..model import build_model
from ..rank_place import RankPlace
from .base import ModuleStep, Strategy, make_optimizer


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """The model on its device, and its optimizer."""
    model = build_model(config).to(place.device)
    optimizer = make_optimizer(model.parameters(), config)
    return ModuleStep(model, model, optimizer, config, place, probe)
