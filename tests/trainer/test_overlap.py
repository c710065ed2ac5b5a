"""DDP with all-reduce after backward: other buckets, the same training."""

from __future__ import annotations

import pytest

from dpwatch.trainer.launch import launch
from dpwatch.trainer.messages import RunProgress

from .support import tiny

pytestmark = pytest.mark.dist


def test_one_bucket_after_backward_trains_the_same(server):
    def last_loss(overlap):
        told = []
        config = tiny("ddp", overlap=overlap)
        assert launch([config], on_event=told.append, server=server) == 0
        return [event.progress.loss for event in told if isinstance(event, RunProgress)][-1]

    assert last_loss(overlap=False) == pytest.approx(last_loss(overlap=True), rel=1e-6)
