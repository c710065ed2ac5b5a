"""`python -m dpwatch.demo.screenshots FOLDER`: the README's pictures, from a real run of the demo.

It trains as `dpwatch demo` does, drives the dashboard as a person would, and saves the screens as
SVG, and some of them again as an animated tour.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from textual.pilot import Pilot

from dpwatch.run.model.snapshot import Snapshot
from dpwatch.trainer.config import TrainConfig
from dpwatch.trainer.options import MODELS
from dpwatch.trainer.registry import known_names
from dpwatch.tui.app import DashboardApp
from dpwatch.tui.views.registry import VIEWS
from dpwatch.tui.widgets.view import digit

from .session import Session

SIZE = (132, 40)
STEPS = 60
WATCHED = {
    "dp": ("memory", "threads", "timeline", "how"),
    "ddp": ("communication", "timeline", "output", "heatmap", "how"),
    "zero3": ("memory", "how"),
}
"""For these strategies, in training order, pictures of these views are taken while they train."""

AT_THE_END = ("compare", "alerts")

TOUR = ("dp", "timeline-dp", "ddp", "compare")
"""The pictures that the tour shows in turn, …"""

SHOWN_S = 4
"""… each for this many seconds."""

PATIENCE_S = 300.0


def main(folder: Path) -> int:
    """Draws all pictures into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    configs = [
        TrainConfig(strategy=name, gpus=4, steps=STEPS, **MODELS["demo"]) for name in known_names()
    ]
    with Session(configs) as session:
        asyncio.run(_draw(session, folder))
    pictures = [(folder / f"{name}.svg").read_text() for name in TOUR]
    (folder / "tour.svg").write_text(animated(pictures))
    return 0


def animated(pictures: Sequence[str]) -> str:
    """One SVG that shows pictures of one size in turn, animated by CSS so it also works in a page.

    Without animation (a converter, or a reader who disabled it) it shows the first of them.
    """
    box = pictures[0].split('viewBox="', 1)[1].split('"', 1)[0]
    whole_s, share = SHOWN_S * len(pictures), 100 / len(pictures)
    frames = "\n".join(
        f'<g class="frame" style="animation-delay: {SHOWN_S * index}s">{picture}</g>'
        for index, picture in enumerate(pictures)
    )
    return f"""<svg viewBox="{box}" xmlns="http://www.w3.org/2000/svg">
<style>
.frame {{ visibility: hidden }}
.frame:first-of-type {{ visibility: visible }}
@keyframes turn {{ 0% {{ visibility: visible }} {share:g}%, 100% {{ visibility: hidden }} }}
@media (prefers-reduced-motion: no-preference) {{
  .frame {{ animation: turn {whole_s}s step-end infinite }}
}}
</style>
{frames}
</svg>
"""


async def _draw(session: Session, folder: Path) -> None:
    app = DashboardApp(session.source, title="dpwatch demo")
    async with app.run_test(size=SIZE) as pilot:
        for name, views in WATCHED.items():
            await _until(pilot, app, _steps(name, STEPS // 3))
            if name == "ddp":
                await pilot.press("s")
                await _until(pilot, app, _answered)
                await pilot.pause(0.5)
                _save(app, folder / "stacks.svg")
                await pilot.press("escape")
            await pilot.press("space")  # or the run might end before the last picture
            await _show(pilot, "overview")
            _save(app, folder / f"{name}.svg")
            for view in views:
                await _show(pilot, view)
                _save(app, folder / f"{view}-{name}.svg")
            await pilot.press("space")
        await _until(pilot, app, _all_done(len(session.configs)))
        for view in AT_THE_END:
            await _show(pilot, view)
            _save(app, folder / f"{view}.svg")
        await pilot.press("q")


async def _show(pilot: Pilot[None], view: str) -> None:
    (place,) = [place for place, each in enumerate(VIEWS) if each.name == view]
    await pilot.press(digit(place))
    await pilot.pause(0.5)


def _answered(seen: Snapshot) -> bool:
    return bool(seen.runs) and all(told.standing == "answered" for told in seen.runs[0].stacks)


def _steps(strategy: str, steps: int) -> Callable[[Snapshot], bool]:
    """Whether the newest run is of that strategy and has done that many steps."""
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
