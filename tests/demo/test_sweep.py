"""The sweep's points, and its list of device counts."""

from __future__ import annotations

import pytest

from dpwatch.demo.sweep import parse_counts, summary
from dpwatch.run.derive.summarize import summarize
from dpwatch.trainer.config import ConfigError, TrainConfig
from tests.frames import dp_run, played


def test_a_point_has_its_runs_figures_or_unknown():
    configs = [TrainConfig(strategy="dp", gpus=n) for n in (4, 8)]
    sweep = summary(configs, [summarize(played(dp_run(devices=4))), None])
    four, eight = sweep.points
    assert (four.strategy, four.gpus, four.state) == ("dp", 4, "finished")
    assert (four.device0_traffic_bytes, four.others_traffic_bytes) == (6000, 2000)
    assert (four.device0_peak_bytes, four.others_peak_bytes) == (5900, 3200)
    assert four.step_ms == 100
    assert (eight.gpus, eight.state, eight.device0_traffic_bytes) == (8, "not run", None)
    assert sweep.series("device0_peak_bytes") == {"dp": {4: 5900, 8: None}}


def test_device_counts_are_sorted_and_unique():
    assert parse_counts("4,1, 2,4") == [1, 2, 4]


@pytest.mark.parametrize("text", ["", "one", "0,2", "2,,4"])
def test_invalid_device_counts_are_refused(text):
    with pytest.raises(ConfigError, match="write numbers from 1 on, such as 1,2,4,8"):
        parse_counts(text)
