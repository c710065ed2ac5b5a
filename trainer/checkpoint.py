"""Writing checkpoints and going on from them (`resume` says where they lie).

Every rank writes what it alone holds, so nothing is gathered and memory does not peak; going on
takes the same strategy on as many devices, and then is the same to the last bit.
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
    """One rank's checkpoints, as `config.save` and `config.resume` ask."""

    def __init__(self, config: TrainConfig, place: RankPlace) -> None:
        self._config = config
        self._place = place

    def resume(self, strategy: Strategy) -> int:
        """Loads the newest checkpoint, if one is asked for.

        Returns:
            Steps that were done when it was written, 0 to begin anew.

        Raises:
            ConfigError: There is none, or it is of another configuration.
        """
        folder = find_checkpoint(self._config)
        if folder is None:
            return 0
        mine = rank_file(folder, self._place.rank)
        kept = torch.load(mine, weights_only=True, map_location="cpu")
        strategy.load(kept["state"])
        return int(kept["step"])

    def after(self, step: int, strategy: Strategy) -> None:
        """Writes a checkpoint after `step` steps, if it is time for one."""
        config = self._config
        if config.save is None:
            return
        every = config.save_every
        if step == config.steps or (every is not None and step % every == 0):
            self._write(checkpoint_dir(config, step), step, strategy)

    def _write(self, folder: Path, step: int, strategy: Strategy) -> None:
        """All ranks write beside the folder; the first one renames when all have."""
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
