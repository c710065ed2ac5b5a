"""Every scenario is a few valid runs with different names."""

from __future__ import annotations

import pytest

from dpwatch.demo.scenarios import all_scenarios, find
from dpwatch.trainer.config import TrainConfig


@pytest.mark.parametrize("scenario", all_scenarios(), ids=lambda scenario: scenario.name)
def test_its_runs_are_valid_and_differ(scenario):
    configs = [
        TrainConfig(strategy=each.strategy, gpus=scenario.gpus, **{**scenario.common, **each.own})
        for each in scenario.variants
    ]
    assert len({(config.strategy, config.title) for config in configs}) == len(configs) > 1
    assert len({config.steps for config in configs}) == 1
    assert find(scenario.name) is scenario


def test_there_are_five_scenarios():
    names = [scenario.name for scenario in all_scenarios()]
    assert names == ["oom", "straggler", "gil", "overlap", "reshard"]
    assert find("moon") is None
