"""Scenarios: a few runs in turn that differ in the one aspect they demonstrate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20


@dataclass(kw_only=True, slots=True, frozen=True)
class Variant:
    """One run of a scenario: its strategy and its own settings."""

    strategy: str
    own: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True, frozen=True)
class Scenario:
    """Runs to compare.

    Attributes:
        name: Its name on the command line.
        summary: What they demonstrate, in one line.
        gpus: Default number of devices.
        common: Default fields of `TrainConfig` for all runs.
        variants: The runs.
        metric: The metric that Compare shows at the end, by its name there.
        out_of_memory: Whether it is intended that a run runs out of memory.
    """

    name: str
    summary: str
    gpus: int = 4
    common: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[Variant, ...]
    metric: str
    out_of_memory: bool = False


# A narrow model with long samples: logits of 97 floats per position outweigh everything else. With
# four devices, dp's device 0, which holds all logits and their gradients, has five times as much
# as another.
_LOGITS = {"d_model": 8, "layers": 1, "heads": 1, "seq_len": 128, "gpu_mem_bytes": 10 * MIB}

_SCENARIOS = (
    Scenario(
        name="oom",
        summary="the master runs out of memory with four fifths free on the others",
        common=_LOGITS | {"steps": 30},
        variants=(
            Variant(strategy="dp", own={"batch_per_gpu": 11, "label": "batch 11"}),
            Variant(strategy="dp", own={"batch_per_gpu": 12, "label": "batch 12"}),
            Variant(strategy="ddp", own={"batch_per_gpu": 12, "label": "batch 12"}),
        ),
        metric="memory",
        out_of_memory=True,
    ),
    Scenario(
        name="straggler",
        summary="one late rank makes all ranks late",
        common={"steps": 40},
        variants=(
            Variant(strategy="ddp", own={"label": "all alike"}),
            Variant(strategy="ddp", own={"label": "rank 2 late", "fault": "forward:2:100"}),
        ),
        metric="time",
    ),
    Scenario(
        name="gil",
        summary="threads of one process wait for its GIL, processes do not",
        common={"steps": 60, "d_model": 32, "layers": 4, "seq_len": 16, "batch_per_gpu": 2},
        variants=(Variant(strategy="dp"), Variant(strategy="ddp")),
        metric="waits",
    ),
    Scenario(
        name="overlap",
        summary="gradients all-reduced during backward, or after it",
        gpus=2,
        common={"steps": 15, "d_model": 512, "layers": 5, "seq_len": 32, "batch_per_gpu": 2},
        variants=(
            Variant(strategy="ddp", own={"label": "overlap"}),
            Variant(strategy="ddp", own={"label": "no overlap", "overlap": False}),
        ),
        metric="comm",
    ),
    Scenario(
        name="reshard",
        summary="parameters dropped after forward and gathered again, or kept for backward",
        common={"steps": 20, "d_model": 256, "layers": 4},
        variants=(
            Variant(strategy="fsdp", own={"label": "reshard"}),
            Variant(
                strategy="fsdp",
                own={"label": "no reshard", "reshard_after_forward": False},
            ),
        ),
        metric="traffic",
    ),
)


def all_scenarios() -> tuple[Scenario, ...]:
    """Every scenario, in the order of `--help`."""
    return _SCENARIOS


def find(name: str) -> Scenario | None:
    """The scenario of that name, None if there is none."""
    return next((scenario for scenario in _SCENARIOS if scenario.name == name), None)
