"""Drawn screens compared with the ones seen and approved; `--snapshot-update` renews them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dpwatch.tui.app import DashboardApp

from .conftest import shown
from .scenes import GPUS, QueueSource, ddp_run, dp_run, snapshot, starting_run, stuck_run
from .schemes import every_run, scheme_run

pytestmark = pytest.mark.snapshot

SIZES = [(120, 35)]
"""One, for the colours; `test_every_screen` has the text at every size."""


def both():
    return snapshot(ddp_run(), dp_run(state="finished", steps=200))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(
    ("scene", "keys"),
    [
        (lambda: snapshot(dp_run()), []),
        (both, []),
        (both, ["7"]),
        (lambda: snapshot(*every_run()), ["7"]),
        (lambda: snapshot(*every_run()), ["7", "m"]),
        (lambda: snapshot(dp_run()), ["0"]),
        (lambda: snapshot(scheme_run("ddp")), ["0"]),
        (lambda: snapshot(scheme_run("hsdp")), ["0"]),
        (both, ["8"]),
        (both, ["p", "enter"]),
        (lambda: snapshot(starting_run()), []),
        (lambda: snapshot(stuck_run()), ["s"]),
        (lambda: snapshot(stuck_run()), ["enter", "s"]),
        (lambda: snapshot(), []),
        (lambda: replace(snapshot(), gpus=GPUS), []),
    ],
    ids=[
        "dp",
        "ddp",
        "compare",
        "compare-all",
        "compare-traffic",
        "how-dp",
        "how-ddp",
        "how-hsdp",
        "diagnoses",
        "rank",
        "starting",
        "stacks",
        "stacks-rank",
        "waiting",
        "waiting-gpus",
    ],
)
def test_screen(snap_compare, scene, keys, size):
    now = scene()
    app = DashboardApp(QueueSource(now))

    async def act(pilot):
        await shown(app, pilot, lambda: app.snapshot == now)
        await pilot.press(*keys)
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=act)


@pytest.mark.parametrize("theme", ["dpwatch-light"])
def test_light(snap_compare, theme):
    now = both()
    app = DashboardApp(QueueSource(now))

    async def act(pilot):
        await shown(app, pilot, lambda: app.snapshot == now)
        app.theme = theme
        await pilot.pause()

    assert snap_compare(app, terminal_size=(120, 35), run_before=act)
