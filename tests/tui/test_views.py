"""The views of many ranks as drawn screens; `--snapshot-update` renews them."""

from __future__ import annotations

import pytest

from dpwatch.tui.app import DashboardApp

from .conftest import shown
from .scenes import QueueSource, alerted, cluster_run, ddp_run, dp_run, snapshot, with_lanes

pytestmark = pytest.mark.snapshot

SIZES = [(120, 35)]
"""One, for the colours; `test_every_screen` has the text at every size."""
SCENES = {
    "heatmap-dp": (dp_run, ["2", "m", "m", "m"]),
    "heatmap-1024": (cluster_run, ["2", "w"]),
    "communication-dp": (dp_run, ["4"]),
    "communication-ddp": (ddp_run, ["4"]),
    "timeline": (lambda: with_lanes(ddp_run()), ["5", "left"]),
    "timeline-64": (lambda: with_lanes(cluster_run()), ["5", "j"]),
    "alerts": (alerted, ["8", "j"]),
    "threads": (dp_run, ["6", "j"]),
    "memory": (dp_run, ["3"]),
    "memory-1024": (cluster_run, ["3", "full_stop", "j"]),
}


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", SCENES)
def test_view(snap_compare, name, size):
    scene, keys = SCENES[name]
    now = snapshot(scene())
    app = DashboardApp(QueueSource(now))

    async def act(pilot):
        await shown(app, pilot, lambda: app.snapshot == now)
        for key in keys:
            await pilot.press(key)
            await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=act)


def test_view_without_colour(snap_compare, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    now = snapshot(cluster_run())
    app = DashboardApp(QueueSource(now))

    async def act(pilot):
        await shown(app, pilot, lambda: app.snapshot == now)
        await pilot.press("2", "w")
        await pilot.pause()

    assert snap_compare(app, terminal_size=(120, 35), run_before=act)
