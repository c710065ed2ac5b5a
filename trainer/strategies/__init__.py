"""The schemes, one a file; `build` imports the one asked for, and torch only then."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from ..config import TrainConfig, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpwatch.probe.api import ProbeLike

    from ..place import Place
    from .base import Strategy


def build(config: TrainConfig, place: Place, probe: ProbeLike) -> Strategy:
    """The configured strategy, ready for its first step.

    Raises:
        ConfigError: It can't be trained at this place.
    """
    module = import_module(f".{require(config.strategy).module}", __name__)
    make = cast("Callable[[TrainConfig, Place, ProbeLike], Strategy]", module.build)
    return make(config, place, probe)
