"""Runs that differ in anything, in turn, from one list."""

from __future__ import annotations

import pytest

from dpwatch.trainer.launch import StopSwitch
from dpwatch.trainer.series import Series

from .support import tiny


def test_a_series_survives_json():
    runs = [("a", tiny("dp", gpus=3, lr=0.1 + 0.2, steps=None)), ("b", tiny("ddp", seed=7))]
    series = Series(runs=runs, past_failures=True)
    assert Series.from_json(series.to_json()) == series


@pytest.mark.dist
@pytest.mark.parametrize("past_failures", [False, True])
def test_past_failures_continues_after_a_failed_run(capfd, past_failures):
    runs = [("a", tiny("single", gpu_mem_bytes=1000)), ("b", tiny("dp", steps=2))]
    stop = StopSwitch()
    assert Series(runs=runs, past_failures=past_failures).train(stop) == 1
    stop.close()
    told = capfd.readouterr()
    *from_the_rank, complaint = told.err.splitlines()
    assert from_the_rank[0] == "Traceback (most recent call last):"
    assert complaint.startswith("dpwatch.trainer: ")
    assert "OutOfMemoryError: vgpu:0 out of memory" in complaint
    assert ("step 2/2" in told.out) == past_failures
