"""Every view in every state, as text: what has been read and approved.

`pytest tests/tui/test_every_screen.py --snapshot-update` renews them; they are there to be read.
`states` says which screens and sizes of a state show something that no other does.
"""

from __future__ import annotations

import re

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from dpwatch.tui.render.ascii import to_ascii
from dpwatch.tui.views.panels import RankDetail
from dpwatch.tui.views.registry import VIEWS

from .conftest import resized, screen_text
from .states import SHOWN, SIZES, SMALL, STATES, USUAL

pytestmark = [pytest.mark.snapshot, pytest.mark.usefixtures("unseen")]

SCREENS = (*(view.name for view in VIEWS), "rank", "stacks")


STATEFUL = tuple(name for name in SCREENS if name != "help")


class Pages(SingleFileSnapshotExtension):
    """A text file a snapshot."""

    _file_extension = "txt"
    _write_mode = WriteMode.TEXT


@pytest.fixture
def pages(snapshot: SnapshotAssertion) -> SnapshotAssertion:
    return snapshot.use_extension(Pages)


def page(name, text):
    """A screen between rules, its lines ended where they end to the eye.

    Without the footer and scroll bars, which Textual brings up to date in its own time; `test_keys`
    looks at the footer's keys.
    """
    lines = [re.sub(r"[▁-█] $", "", line).rstrip() for line in text.splitlines()[:-1]]
    return "\n".join([f"═══ {name} ".ljust(40, "═"), *lines, ""])


def show(app, name):
    """Brings a screen up, as its key would but without that key's waiting."""
    if name == "rank":
        rank = app.frame.view.run.ranks[0]
        app.query_one(RankDetail).key = (rank.rank, rank.device)
    app.panel = name
    if name == "stacks":
        app.action_stacks()


@pytest.mark.parametrize("state", STATES)
async def test_every_screen(dashboard, pages, state):
    sizes = SIZES.get(state, (USUAL,))
    drawn = {size: [] for size in sizes}
    async with dashboard(*STATES[state](), size=SMALL) as (app, pilot):
        for name in SHOWN.get(state, SCREENS if state == "normal" else STATEFUL):
            show(app, name)
            # Resized, so that each view lays itself out anew: larger, and from the largest back.
            for width, height in sizes:
                drawn[width, height].append(page(name, await resized(app, pilot, width, height)))
    for (width, height), screens in drawn.items():
        assert "\n".join(screens) == pages(name=f"{width}x{height}")


async def test_every_screen_comes_back_as_it_was_from_any_size(dashboard):
    async with dashboard(*STATES["hung"](), size=(80, 24)) as (app, pilot):
        for name in SCREENS:
            show(app, name)
            before = await resized(app, pilot, 80, 24)
            large = await resized(app, pilot, 240, 70)
            assert max(len(line.rstrip()) for line in large.splitlines()[3:]) > 80, name
            assert "needs 80×24 cells; this terminal has 60×20" in await resized(app, pilot, 60, 20)
            after = await resized(app, pilot, 80, 24)
            assert page(name, after) == page(name, before)
            for _ in range(50):  # the keys come back a little later
                if app.focused is not None:
                    break
                await pilot.pause()
            assert app.focused is not None, name


SIGNS = {"stale": "~", "lost": "?", "failed": "✗", "hung": "‖"}
OF_RANKS = {"stale": "~ stale", "lost": "? lost", "failed": "✗ failed", "hung": "‖ stalled"}
"""What the overview says of a rank concerned; the sign stands in every view of ranks."""


@pytest.mark.parametrize(
    ("state", "ascii_only"),
    [("stale", True), ("hung", True), ("hung", False), ("lost", False), ("failed", True)],
)
async def test_no_state_is_told_by_colour_alone(dashboard, monkeypatch, state, ascii_only):
    monkeypatch.setenv("NO_COLOR", "1")
    write = to_ascii if ascii_only else str
    sign, of_rank = write(SIGNS[state]), write(OF_RANKS[state])
    async with dashboard(*STATES[state](), ascii_only=ascii_only) as (app, pilot):
        for name in ("overview", "heatmap", "memory", "timeline", "threads", "compare", "alerts"):
            show(app, name)
            await pilot.pause()
            head, nav, *body = screen_text(app).splitlines()
            assert f"{sign} {state}" in head, name
            text = "\n".join(body)
            if name == "overview":
                assert f"{sign} {state.upper()}" in text
                assert of_rank in text
            elif name in ("heatmap", "memory", "timeline", "threads") and state != "stale":
                assert re.search(rf"^[^·]*{re.escape(sign)}", text, re.MULTILINE), name
            elif name == "alerts" and state in ("lost", "hung"):
                assert f"{write('✗')} CRITICAL" in text
                assert "8 Alerts (1)" in nav
            elif name == "compare":
                assert f"{sign} ddp" in text
            assert not ascii_only or text.isascii()
