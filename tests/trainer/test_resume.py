"""Checkpoints: complete or absent, and refused in one line if they do not fit."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from dpwatch.trainer.checkpoint import Checkpoints
from dpwatch.trainer.config import ConfigError
from dpwatch.trainer.launch import launch
from dpwatch.trainer.rank_place import RankPlace
from dpwatch.trainer.resume import FACTS, find_checkpoint

from .support import tiny


class Counter:
    """A strategy whose state is a number."""

    def __init__(self, value=0):
        self.value = value

    def state(self):
        return {"value": torch.tensor(self.value)}

    def load(self, state):
        self.value = int(state["value"])


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "kept"


@pytest.fixture
def config(kept):
    return tiny("single", gpus=1, steps=9, save=str(kept), save_every=4)


def checkpoints(config):
    device = torch.device("cpu")
    return Checkpoints(config, RankPlace(rank=0, world_size=1, devices=(device,), virtual=True))


def resuming(config, **changes):
    return dataclasses.replace(config, save=None, resume=config.save, **changes)


def test_checkpoints_are_written_at_intervals_and_at_the_end(config, kept):
    writing = checkpoints(config)
    for step in range(1, 10):
        writing.after(step, Counter(step))
    names = sorted(path.name for path in (kept / "single").iterdir())
    assert names == ["step-00000004", "step-00000008", "step-00000009"]
    strategy = Counter()
    assert checkpoints(resuming(config)).resume(strategy) == 9
    assert strategy.value == 9


def test_without_save_there_are_no_checkpoints(config, kept):
    plain = dataclasses.replace(config, save=None)
    checkpoints(plain).after(9, Counter())
    assert not kept.exists()
    assert checkpoints(plain).resume(Counter()) == 0


def test_an_unfinished_checkpoint_is_ignored(config, kept):
    checkpoints(config).after(4, Counter(4))
    (kept / "single" / "step-00000008.part").mkdir()
    assert find_checkpoint(resuming(config)) == kept / "single" / "step-00000004"
    checkpoints(config).after(8, Counter(8))
    assert find_checkpoint(resuming(config)).name == "step-00000008"


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(config, kept):
    with pytest.raises(ConfigError, match=r"no checkpoint of single in .*; write one with --save"):
        find_checkpoint(resuming(config))
    checkpoints(config).after(4, Counter(4))
    with pytest.raises(ConfigError, match="has layers = 1, and this run 2; use the same value"):
        find_checkpoint(resuming(config, layers=2))
    folder = kept / "single" / "step-00000004"
    (folder / "rank-0.pt").unlink()
    with pytest.raises(ConfigError, match=r"rank-0\.pt is missing"):
        find_checkpoint(resuming(config))
    (folder / FACTS).write_text("{")
    with pytest.raises(ConfigError, match="is not a checkpoint"):
        find_checkpoint(resuming(config))
    (folder / FACTS).write_text(json.dumps({}))
    with pytest.raises(ConfigError, match="use the same value"):
        find_checkpoint(resuming(config))


def test_a_missing_checkpoint_is_refused_before_anything_starts(config):
    started = []
    with pytest.raises(ConfigError, match="no checkpoint"):
        launch([resuming(config)], on_event=started.append)
    assert started == []
