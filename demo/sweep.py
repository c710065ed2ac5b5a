"""The same training on more and more devices: device 0's traffic and memory at each number.

The batch per device is constant, so the work of a device stays the same; what grows with the number
of devices is due to the scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

import dpwatch
from dpwatch.run.derive.comparison import figures
from dpwatch.run.model.snapshot import Run
from dpwatch.trainer.config import ConfigError, TrainConfig

SCHEMA = "dpwatch.sweep/1"
STEPS = 12
"""Enough for a memory sample and a few complete steps of traffic."""


class Point(msgspec.Struct, frozen=True):
    """One strategy on a number of devices; traffic is sent plus received, per step.

    Attributes:
        strategy: Its name.
        gpus: Number of devices it was given.
        state: How its run ended.
        device0_traffic_bytes: Device 0's traffic.
        others_traffic_bytes: Median of the other devices, null without any.
        device0_peak_bytes: Device 0's peak.
        others_peak_bytes: Highest peak of the other devices, null without any.
        step_ms: The slowest device's typical step.
        samples_per_s: Throughput of the whole run.
    """

    strategy: str
    gpus: int
    state: str
    device0_traffic_bytes: int | None
    others_traffic_bytes: float | None
    device0_peak_bytes: int | None
    others_peak_bytes: float | None
    step_ms: float | None
    samples_per_s: float | None


class Sweep(msgspec.Struct, frozen=True):
    """The object that `--sweep-gpus --json` prints."""

    schema: str
    version: str
    title: str
    batch_per_gpu: int
    points: list[Point]

    def series(self, field: str) -> dict[str, dict[int, float | None]]:
        """A field of all points: by strategy, then by number of devices."""
        by_strategy: dict[str, dict[int, float | None]] = {}
        for point in self.points:
            by_strategy.setdefault(point.strategy, {})[point.gpus] = getattr(point, field)
        return by_strategy


def parse_counts(text: str) -> list[int]:
    """Numbers of devices from a comma-separated list, in ascending order, each once.

    Raises:
        ConfigError: The list is invalid.
    """
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < 1:
        raise ConfigError(f"--sweep-gpus {text}: write numbers from 1 on, such as 1,2,4,8")
    return counts


def summary(configs: Sequence[TrainConfig], runs: Sequence[Run | None]) -> Sweep:
    """The sweep over runs in the order of their configurations, None for one that never started."""
    points = [_point(config, run) for config, run in zip(configs, runs, strict=True)]
    return Sweep(
        schema=SCHEMA,
        version=dpwatch.__version__,
        title=configs[0].title,
        batch_per_gpu=configs[0].batch_per_gpu,
        points=points,
    )


def _point(config: TrainConfig, run: Run | None) -> Point:
    known: dict[str, Any] = dict.fromkeys(Point.__struct_fields__[3:])
    if run is not None:
        row = figures(run)
        known = {
            "device0_traffic_bytes": row.traffic0,
            "others_traffic_bytes": row.traffic_others,
            "device0_peak_bytes": row.peak0,
            "others_peak_bytes": row.peak_others_max,
            "step_ms": row.step_ms,
            "samples_per_s": row.samples_per_s,
        }
    state = "not run" if run is None else run.state
    return Point(strategy=config.strategy, gpus=config.gpus, state=state, **known)
