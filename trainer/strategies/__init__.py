"""The strategies, one per file; `build` imports only the one asked for, and torch with it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from ..config import TrainConfig, require

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from dpwatch.probe.api import ProbeLike

    from ..rank_place import RankPlace
    from .base import Strategy


def check(config: TrainConfig, place: RankPlace) -> None:
    """Asks the strategy whether it can be trained here, before ranks join a group.

    If one rank refuses, all do, and none is left waiting for another.

    Raises:
        ConfigError: It cannot.
    """
    refuse = getattr(_module(config), "check", None)
    if refuse is not None:
        refuse(config, place)


def build(config: TrainConfig, place: RankPlace, probe: ProbeLike) -> Strategy:
    """Creates the configured strategy, ready for its first step."""
    make = cast("Callable[[TrainConfig, RankPlace, ProbeLike], Strategy]", _module(config).build)
    return make(config, place, probe)


def _module(config: TrainConfig) -> ModuleType:
    return import_module(f".{require(config.strategy).module}", __name__)
