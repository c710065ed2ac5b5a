"""Where checkpoints are, and whether one fits a configuration. Torch-free.

    DIR/<strategy>/step-00000020/config.json rank-0.pt rank-1.pt …

A directory gets its final name only when all of its files are written, so it is always complete.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from .config import ConfigError, TrainConfig

FACTS = "config.json"

_FREE = ("steps", "save", "save_every", "resume", "gpu_mem_bytes")
"""Fields of the configuration that may differ from the checkpoint's."""


def checkpoint_dir(config: TrainConfig, step: int) -> Path:
    """Directory of the checkpoint after `step` steps."""
    assert config.save is not None
    return Path(config.save) / config.strategy / f"step-{step:08d}"


def rank_file(folder: Path, rank: int) -> Path:
    """A rank's file."""
    return folder / f"rank-{rank}.pt"


def facts(config: TrainConfig) -> dict[str, object]:
    """What the configurations of a checkpoint and of a run that resumes from it must share."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in _FREE
    }


def find_checkpoint(config: TrainConfig) -> Path | None:
    """The newest checkpoint for the configuration to resume from, None if it asks for none.

    Raises:
        ConfigError: There is none, or it belongs to another configuration.
    """
    if config.resume is None:
        return None
    found = sorted(Path(config.resume).glob(f"{config.strategy}/step-*[0-9]"))
    if not found:
        raise ConfigError(
            f"no checkpoint of {config.strategy} in {config.resume}; "
            f"write one with --save {config.resume}"
        )
    folder = found[-1]
    try:
        theirs = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is not a checkpoint: {error}") from None
    for name, mine in facts(config).items():
        if theirs.get(name) != mine:
            raise ConfigError(
                f"the checkpoint in {folder} has {name} = {theirs.get(name)}, and this run {mine}; "
                "use the same value to resume from it"
            )
    missing = [r for r in range(config.processes) if not rank_file(folder, r).is_file()]
    if missing:
        raise ConfigError(f"{rank_file(folder, missing[0])} is missing; use another checkpoint")
    return folder
