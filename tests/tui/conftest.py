"""An app that has taken its first snapshot, ready for keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from hypothesis import settings
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.screen import Screen

from dpwatch.run.model.snapshot import Snapshot
from dpwatch.tui.app import DashboardApp

from .scenes import QueueSource

calm = settings(deadline=None, max_examples=60)
"""Noisy machines: no time limit an example."""

Dashboard = Callable[..., AbstractAsyncContextManager[tuple[DashboardApp, Pilot[Any]]]]


async def shown(app: DashboardApp, pilot: Pilot[Any], ready: Callable[[], object]) -> None:
    """Go on once `ready` holds; the test's own time limit ends a wait in vain."""
    while not ready():
        await asyncio.sleep(0.005)
    await pilot.pause()


async def resized(app: DashboardApp, pilot: Pilot[Any], width: int, height: int) -> str:
    """What stands on the screen once it has been laid out anew for a terminal of that size."""
    await pilot.resize_terminal(width, height)
    text = screen_text(app)
    while {cell_len(row) for row in text.split("\n")} != {width}:
        await pilot.pause()
        text = screen_text(app)
    return text


def screen_text(app: DashboardApp) -> str:
    """What stands on the screen."""
    strips = app.screen._compositor.render_strips(app.size)
    return "\n".join(strip.text for strip in strips)


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of day are drawn alike everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at the terminal: only `screen_text` draws, which takes half of the time."""
    monkeypatch.setattr(Screen, "_compositor_refresh", lambda screen: screen._dirty_widgets.clear())


@pytest.fixture
def dashboard() -> Dashboard:
    @asynccontextmanager
    async def run(
        *snapshots: Snapshot, size: tuple[int, int] = (120, 35), **options: Any
    ) -> AsyncIterator[tuple[DashboardApp, Pilot[Any]]]:
        app = DashboardApp(QueueSource(*snapshots), **options)
        async with app.run_test(size=size) as pilot:
            if snapshots:
                await shown(app, pilot, lambda: app.snapshot == snapshots[-1])
            yield app, pilot

    return run
