"""`python -m dpwatch.demo.screenshots FOLDER`: the README's pictures, from a real run of the demo.

It trains as `dpwatch demo` does, drives the dashboard as a person would, and saves what is on the
screen as SVG.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

from textual.pilot import Pilot

from dpwatch.hub.snapshot import Snapshot
from dpwatch.trainer.config import TrainConfig
from dpwatch.trainer.registry import known_names
from dpwatch.tui.app import DashboardApp

from .session import Session

SIZE = (132, 40)
STEPS = 80
WATCHED = ("dp", "ddp", "zero3")
"""Of these, in the order they are trained, there are pictures while they train."""

PATIENCE_S = 300.0


def main(folder: Path) -> int:
    """Draws them all into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    configs = [TrainConfig(strategy=name, gpus=4, steps=STEPS) for name in known_names()]
    with Session(configs) as session:
        asyncio.run(_draw(session, folder))
    return 0


async def _draw(session: Session, folder: Path) -> None:
    app = DashboardApp(session.source, title="dpwatch demo")
    async with app.run_test(size=SIZE) as pilot:
        for name in WATCHED:
            await _until(pilot, app, _steps(name, STEPS * 2 // 3))
            await pilot.press("1")
            _save(app, folder / f"{name}.svg")
            for key, view in (("5", "timeline"), ("0", "how")):
                await pilot.press(key)
                await pilot.pause(0.2)
                _save(app, folder / f"{view}-{name}.svg")
        await _until(pilot, app, _all_done(len(session.configs)))
        await pilot.press("7")
        await pilot.pause(0.5)
        _save(app, folder / "compare.svg")
        await pilot.press("8")
        await pilot.pause(0.5)
        _save(app, folder / "alerts.svg")
        await pilot.press("q")


def _steps(strategy: str, steps: int) -> Callable[[Snapshot], bool]:
    """The newest run is of that strategy and has done so many steps."""
    return lambda seen: (
        bool(seen.runs)
        and (seen.runs[0].run.strategy == strategy and seen.runs[0].run.steps >= steps)
    )


def _all_done(runs: int) -> Callable[[Snapshot], bool]:
    return lambda seen: (
        len(seen.runs) == runs and all(view.run.state == "finished" for view in seen.runs)
    )


async def _until(
    pilot: Pilot[None], app: DashboardApp, reached: Callable[[Snapshot], bool]
) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while app.snapshot is None or not reached(app.snapshot):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the demo did not get there in {PATIENCE_S:.0f} s")
        await pilot.pause(0.1)


def _save(app: DashboardApp, path: Path) -> None:
    path.write_text(app.export_screenshot(title="dpwatch", simplify=True))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m dpwatch.demo.screenshots FOLDER")
    sys.exit(main(Path(sys.argv[1])))
