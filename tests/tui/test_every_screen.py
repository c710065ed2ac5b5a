"""Every view in every state at every size, as text: what has been read and approved.

`pytest tests/tui/test_every_screen.py --snapshot-update` renews them; they are there to be read.
"""

from __future__ import annotations

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from dpwatch.tui.view import digit
from dpwatch.tui.views import VIEWS

from .conftest import screen_text
from .states import STATES

pytestmark = pytest.mark.snapshot

SIZES = [(80, 24), (120, 35), (200, 60), (240, 70)]
SCREENS = {
    **{view.name: [digit(index)] for index, view in enumerate(VIEWS)},
    "rank": ["1", "g", "enter"],
    "stacks": ["1", "s"],
}
"""The keys that lead to each."""


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
    # One app through all sizes: so each but the first has been laid out anew, in every view.
    async with dashboard(*STATES[state](), size=SIZES[0]) as (app, pilot):
        for width, height in SIZES:
            await pilot.resize_terminal(width, height)
            drawn = []
            for name, keys in SCREENS.items():
                await pilot.press(*keys)
                await pilot.pause()
                text = screen_text(app)
                assert {len(line) for line in text.splitlines()} <= {width} or state == "hostile"
                drawn.append(page(name, text))
                await pilot.press("escape")
            assert "\n".join(drawn) == pages(name=f"{state}-{width}x{height}")
