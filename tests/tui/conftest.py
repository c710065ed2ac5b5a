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
from textual import _wait
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets._footer import FooterKey

from dpwatch.hub.snapshot import Snapshot
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
    while True:
        text = screen_text(app)
        if {cell_len(row) for row in text.split("\n")} == {width} and footer_is_true(app):
            return text
        await pilot.pause()


def footer_is_true(app: DashboardApp) -> bool:
    """Whether the footer has the keys of what is on screen; it is made anew a moment later."""
    shown = {key.action for key in app.query(FooterKey)} - {"command_palette"}
    active = app.screen.active_bindings.values()
    return shown == {each.binding.action for each in active if each.binding.show}


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


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key costs a few milliseconds: Textual looks every 20 whether the app is idle by now.

    In return the screen is brought up to date after each, for which its own clock ticks every 17.
    """
    monkeypatch.setattr(_wait, "SLEEP_GRANULARITY", 0.005)
    monkeypatch.setattr(_wait, "SLEEP_IDLE", 0.000_25)
    press = Pilot.press

    async def pressed(pilot: Pilot[Any], *keys: str) -> None:
        await press(pilot, *keys)
        if pilot.app.is_running:
            pilot.app.screen._on_timer_update()

    monkeypatch.setattr(Pilot, "press", pressed)


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
