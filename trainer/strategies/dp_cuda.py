"""The real `torch.nn.DataParallel`, for two or more CUDA devices.

Its step is the one that `dp` describes and does by hand on virtual devices. Here torch does the
scatter, replicate, parallel forward and gather inside the wrapped module's forward, and the scatter
of gradients and their reduction inside backward.
"""

from __future__ import annotations

from torch.nn import DataParallel

from dpwatch.probe.api import ProbeLike

from ..config import TrainConfig
from ..model import build_model
from ..rank_place import RankPlace
from .base import ModuleStep, Strategy, make_optimizer


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """The model on the first device, wrapped over all of them; outputs gather on the first."""
    model = build_model(config).to(place.device)
    wrapped = DataParallel(model, device_ids=list(place.devices), output_device=place.device)
    optimizer = make_optimizer(model.parameters(), config)
    return ModuleStep(model, wrapped, optimizer, config, place, probe)
