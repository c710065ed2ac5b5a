"""Every view in every state at every size, as text: what has been read and approved.

`pytest tests/tui/test_every_screen.py --snapshot-update` renews them; they are there to be read.
"""

from __future__ import annotations

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from dpwatch.tui.panels import RankDetail
from dpwatch.tui.views import VIEWS

from .conftest import resized, screen_text
from .states import STATES

pytestmark = pytest.mark.snapshot

SIZES, LARGEST = [(80, 24), (120, 35), (200, 60)], (240, 70)
SCREENS = (*(view.name for view in VIEWS), "rank", "stacks")


class Pages(SingleFileSnapshotExtension):
    """A text file a snapshot."""

    _file_extension = "txt"
    _write_mode = WriteMode.TEXT


@pytest.fixture
def pages(snapshot: SnapshotAssertion) -> SnapshotAssertion:
    return snapshot.use_extension(Pages)


def page(name, text):
    """A screen between rules, its lines ended where they end to the eye."""
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join([f"═══ {name} ".ljust(40, "═"), *lines, ""])


@pytest.mark.parametrize("state", STATES)
async def test_every_screen(dashboard, pages, state):
    sizes = [*SIZES, LARGEST] if state == "normal" else SIZES
    drawn = {size: [] for size in sizes}
    async with dashboard(*STATES[state](), size=SIZES[0]) as (app, pilot):
        if (view := app.frame.view) is not None:
            app.query_one(RankDetail).key = (view.run.ranks[0].rank, view.run.ranks[0].device)
        for name in SCREENS:
            app.panel = name
            if name == "stacks":
                app.action_stacks()
            # Resized, so that each view lays itself out anew: larger, and from the largest back.
            for width, height in sizes:
                await resized(app, pilot, width, height)
                drawn[width, height].append(page(name, screen_text(app)))
    for (width, height), screens in drawn.items():
        assert "\n".join(screens) == pages(name=f"{width}x{height}")
