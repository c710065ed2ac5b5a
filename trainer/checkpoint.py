"""Writes and loads checkpoints (`resume` says where they are).

Every rank writes what it alone holds, so nothing is gathered and memory does not peak. Resuming
needs the same strategy on as many devices, and is then bit-identical.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist

from .config import TrainConfig
from .rank_place import RankPlace
from .resume import FACTS, checkpoint_dir, facts, find_checkpoint, rank_file
from .strategies.base import Strategy


class Checkpoints:
    """One rank's checkpoints, according to `config.save` and `config.resume`."""

    def __init__(self, config: TrainConfig, place: RankPlace) -> None:
        self._config = config
        self._place = place

    def resume(self, strategy: Strategy) -> int:
        """Loads the newest checkpoint, if `config.resume` is set.

        Returns:
            Steps done when it was written, 0 to start from scratch.

        Raises:
            ConfigError: There is none, or it belongs to another configuration.
        """
        folder = find_checkpoint(self._config)
        if folder is None:
            return 0
        mine = rank_file(folder, self._place.rank)
        kept = torch.load(mine, weights_only=True, map_location="cpu")
        strategy.load(kept["state"])
        return int(kept["step"])

    def after(self, step: int, strategy: Strategy) -> None:
        """Writes a checkpoint after `step` steps, if one is due."""
        config = self._config
        if config.save is None:
            return
        every = config.save_every
        if step == config.steps or (every is not None and step % every == 0):
            self._write(checkpoint_dir(config, step), step, strategy)

    def _write(self, folder: Path, step: int, strategy: Strategy) -> None:
        """All ranks write to a temporary directory; the first one renames it when all are done."""
        unfinished = folder.with_name(folder.name + ".part")
        unfinished.mkdir(parents=True, exist_ok=True)
        torch.save(
            {"step": step, "state": strategy.state()}, rank_file(unfinished, self._place.rank)
        )
        _wait_for_all()
        if self._place.rank == 0:
            told = json.dumps(facts(self._config), indent=1)
            (unfinished / FACTS).write_text(told, encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(unfinished, folder)
        _wait_for_all()


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()
