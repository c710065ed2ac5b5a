"""Every key of every view does what it says, and help says no more and no less.

A view's script is pressed from top to bottom. What stands beside a key must not hold before it is
pressed, and must hold after. A key that is bound and in no script, or in help and not bound, fails.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from textual.binding import Binding
from textual.widgets import Input

from dpwatch.run.model.snapshot import Snapshot
from dpwatch.tui.app import OPENED, DashboardApp
from dpwatch.tui.draw.palette import palette
from dpwatch.tui.views.compare.widget import Compare
from dpwatch.tui.views.output.widget import Output
from dpwatch.tui.views.ranks.widget import Heatmap
from dpwatch.tui.views.registry import PAGES, VIEWS
from dpwatch.tui.views.timeline.widget import Timeline
from dpwatch.tui.views.waiting_and_help import help_lines
from dpwatch.tui.widgets.view import digit

from .conftest import screen_text
from .scenes import alerted, snapshot, stuck_run, with_lanes, with_output
from .schemes import every_run

pytestmark = pytest.mark.usefixtures("unseen")

Holds = Callable[[DashboardApp], object]
Script = list[tuple[str, Holds | None]]

SIZE = (80, 24)
WAYS = {
    **{view.name: [digit(index)] for index, view in enumerate(VIEWS)},
    "rank": ["1", "g", "enter"],
    "stacks": ["1", "s"],
}
"""How to get to each screen."""


def the(app: DashboardApp, kind: type[Any]) -> Any:
    """A widget by its class."""
    return app.query_one(kind)


def scroll_of(app: DashboardApp) -> float:
    return app.focused.scroll_offset.y


def is_at(row: int) -> Holds:
    """The cursor of what gets the keys."""
    return lambda app: app.focused.cursor == row


def panel(name: str) -> Holds:
    return lambda app: app.panel == name


def none(holds: Holds) -> Holds:
    """The contrary."""
    return lambda app: not holds(app)


class Moves:
    """A figure grows (by -1 shrinks, by 0 changes) from before the key to after it."""

    def __init__(self, figure: Callable[[DashboardApp], float], by: int) -> None:
        self._figure, self._by, self._before = figure, by, None

    def __call__(self, app: DashboardApp) -> bool:
        now = self._figure(app)
        if self._before is None:
            self._before = now
        moved = (now - self._before) * self._by > 0 if self._by else now != self._before
        if moved:
            self._before = None
        return moved


def by(title: str, *, turned: bool = False) -> Holds:
    """The rows are sorted by that, as the view's own head says."""
    arrow = "▲" if turned else "▼"
    return lambda app: re.search(rf"{title} ?{arrow}", screen_text(app))


def rows(last: int) -> Script:
    """Moving a cursor in rows that are all on the screen."""
    return [
        *((key, is_at(n)) for key, n in (("j", 1), ("down", 2), ("k", 1), ("up", 0))),
        *((key, is_at(n)) for key, n in (("G", last), ("g", 0), ("end", last), ("home", 0))),
        *((key, is_at(n)) for key, n in (("pagedown", last), ("pageup", 0))),
    ]


def sorts(first: str, last: str) -> Script:
    return [
        ("full_stop", by(first)), ("r", by(first, turned=True)), ("r", by(first)),
        ("comma", none(by(first))), ("comma", by(last)), ("full_stop", none(by(last))),
    ]  # fmt: skip


def at_end(app: DashboardApp) -> bool:
    return scroll_of(app) == app.focused.max_scroll_y


def at_top(app: DashboardApp) -> bool:
    return scroll_of(app) == 0


SCROLLING: Script = [
    *((key, Moves(scroll_of, by)) for key, by in (("j", 1), ("k", -1), ("down", 1), ("up", -1))),
    ("pagedown", Moves(scroll_of, 1)), ("pageup", Moves(scroll_of, -1)),
    ("G", at_end), ("g", at_top), ("end", at_end), ("home", at_top),
]  # fmt: skip
OPENS: Script = [("enter", panel("rank")), ("escape", none(panel("rank")))]


def filter_open(app: DashboardApp) -> bool:
    return app.query_one("#filter", Input).has_class("open")


FILTERS: Script = [("slash", filter_open), ("escape", none(filter_open))]


def metric(kind: type[Any], number: int) -> Holds:
    """What that view draws."""

    def holds(app: DashboardApp) -> bool:
        widget = the(app, kind)
        return (widget.choice if kind is Compare else widget).metric == number

    return holds


def span(app: DashboardApp) -> int:
    return the(app, Timeline)._window.span_ns


def start(app: DashboardApp) -> int:
    return the(app, Timeline)._window.start_ns


def follows(app: DashboardApp) -> bool:
    return the(app, Output).following


def of_rank(rank: int | None) -> Holds:
    return lambda app: the(app, Output).rank == rank


SCRIPTS: dict[str, Script] = {
    "overview": [*rows(7), *OPENS, *FILTERS, *sorts("step", "traffic")],
    "heatmap": [
        ("right", is_at(1)), ("l", is_at(2)), ("left", is_at(1)), ("h", is_at(0)),
        ("down", is_at(4)), ("up", is_at(0)), ("j", is_at(4)), ("k", is_at(0)),
        ("end", is_at(7)), ("home", is_at(0)), ("G", is_at(7)), ("g", is_at(0)),
        ("pagedown", is_at(4)), ("pageup", is_at(0)), ("w", is_at(6)),
        ("m", metric(Heatmap, 1)), ("M", metric(Heatmap, 0)), *OPENS,
    ],
    "memory": [*rows(7), *OPENS, *FILTERS, *sorts("peak", "gathered")],
    "communication": SCROLLING,
    "timeline": [
        *rows(7), *OPENS,
        ("plus", Moves(span, -1)), ("minus", Moves(span, 1)), ("equals_sign", Moves(span, -1)),
        ("left", Moves(start, -1)), ("right", Moves(start, 1)), ("h", Moves(start, -1)),
        ("l", Moves(start, 1)), ("comma", Moves(start, -1)), ("full_stop", Moves(start, 1)),
        ("left", None), ("f", lambda app: the(app, Timeline).place[1] is None),
    ],
    "threads": [*rows(7), *OPENS, *FILTERS, *sorts("core", "idle")],
    "compare": [
        *((key, is_at(n)) for key, n in (("j", 1), ("down", 2), ("k", 1), ("up", 0))),
        ("G", at_end), ("g", at_top), ("end", at_end), ("home", at_top),
        ("pagedown", Moves(lambda app: app.focused.cursor, 1)),
        ("pageup", Moves(lambda app: app.focused.cursor, -1)),
        ("m", metric(Compare, 1)), ("M", metric(Compare, 0)), *FILTERS,
        ("full_stop", lambda app: the(app, Compare).choice.sort == "strategy"),
        ("r", lambda app: the(app, Compare).choice.reverse),
        ("comma", lambda app: the(app, Compare).choice.sort == ""),
        ("enter", panel("overview")), ("escape", panel("compare")),
    ],
    "alerts": [*rows(3), *OPENS],
    "output": [
        ("k", none(follows)), ("j", follows), ("up", none(follows)), ("down", follows),
        ("pageup", Moves(scroll_of, -1)), ("pagedown", Moves(scroll_of, 1)),
        ("g", at_top), ("G", follows), ("home", at_top), ("end", follows), ("g", None),
        ("f", follows), ("right", of_rank(0)), ("l", of_rank(1)), ("left", of_rank(0)),
        ("h", of_rank(None)), ("t", lambda app: the(app, Output).only_err),
        ("t", lambda app: not the(app, Output).only_err), *FILTERS,
    ],
    "how": SCROLLING,
    "help": SCROLLING,
    "rank": SCROLLING,
    "stacks": SCROLLING,
}  # fmt: skip


def ago(seconds: float) -> Holds:
    return lambda app: app.frame.ago_s == seconds


def run(app: DashboardApp) -> int:
    """The run on screen, by how many are newer."""
    return [view.run.run_id for view in app.frame.snapshot.runs].index(app.frame.run_id)


def palette_open(app: DashboardApp) -> bool:
    return type(app.screen).__name__ == "CommandPalette"


def everywhere(app: DashboardApp, folder: Path, ends: list[int]) -> Script:
    """The app's own keys, which do the same on every screen: tried on the first."""
    return [
        ("left_square_bracket", ago(0.25)), ("right_square_bracket", ago(0.0)),
        ("left_curly_bracket", ago(2.5)), ("right_curly_bracket", ago(0.0)), ("space", None),
        *((key, Moves(run, 0)) for key in ("n", "p", "tab", "shift+tab")),
        ("e", lambda app: list(folder.glob("*.svg"))),
        ("colon", palette_open), ("escape", none(palette_open)),
        ("ctrl+p", palette_open), ("escape", none(palette_open)),
        ("plus", lambda app: app.frame.interval_s == 0.5),
        ("minus", lambda app: app.frame.interval_s is None),
        ("equals_sign", lambda app: app.frame.interval_s == 0.5),
        *((digit(index), panel(VIEWS[index].name)) for index in (*range(1, len(VIEWS) - 1), 0)),
        ("q", Moves(lambda _: len(ends), 1)), ("ctrl+c", Moves(lambda _: len(ends), 1)),
    ]  # fmt: skip


def here(name: str, app: DashboardApp) -> Script:
    """Those of them that are about the screen they are pressed on."""
    asked, back = app._source.asked, [(key, None) for key in WAYS[name]]
    return [
        ("space", lambda app: app.paused), ("space", lambda app: not app.paused),
        ("y", lambda app: app.clipboard),
        ("s", Moves(lambda app: len(asked), 1)), *back,
        ("question_mark", none(panel(name)) if name == "help" else panel("help")), *back,
        ("escape" if name in OPENED else "4" if name == "memory" else "3", none(panel(name))),
        *back,
    ]  # fmt: skip


def bound(app: DashboardApp) -> dict[str, Binding]:
    """The keys that do something now, by what dpwatch itself has bound."""
    mine = {
        key.key
        for node in (app, app.focused)
        for kind in type(node).__mro__
        if kind.__module__.startswith("dpwatch.")
        for key in Binding.make_bindings(kind.__dict__.get("BINDINGS", ()))
    }
    active = app.screen.active_bindings
    return {key: active[key].binding for key in sorted(mine & set(active))}


def scene(name: str) -> list[Snapshot]:
    """What that screen has something to show of, and some moments before."""
    if name == "compare":
        views = every_run()
    else:
        view = with_output(with_lanes(stuck_run()), lines=40)
        ranks = [replace(each, host=f"node{each.rank // 4}") for each in view.run.ranks]
        ops = [
            replace(op, group=f"group {number}")
            for number in range(24)
            for op in view.run.collectives
        ]
        run = replace(view.run, ranks=ranks, collectives=ops, hosts=["node0", "node1"])
        views = [replace(view, run=run), alerted()]
    return [snapshot(*views, wall_s=1000.0 + number / 4) for number in range(12)]


async def play(app: DashboardApp, pilot: Any, script: Script) -> set[str]:
    """Presses a script's keys. Returns: those whose effect was looked for."""
    seen = set()
    for key, holds in script:
        assert holds is None or not holds(app), f"{key}: holds before it is pressed"
        await pilot.press(key)
        if holds is not None:
            await comes(app, pilot, holds, key)
            seen.add(key)
    return seen


async def comes(app: DashboardApp, pilot: Any, holds: Holds, what: str) -> None:
    """Goes on once it holds; screens come and go in their own time."""
    for _ in range(50):
        if holds(app):
            return
        await pilot.pause()
    raise AssertionError(f"{what}: does not hold\n{screen_text(app)}")


@pytest.mark.parametrize("name", WAYS)
async def test_every_key_does_what_it_says(dashboard, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *rest = scene(name)
    async with dashboard(first, size=SIZE) as (app, pilot):
        for each in rest:
            app._source.queue.put(each)
            while app.snapshot is not each:
                await asyncio.sleep(0.002)
        ends: list[int] = []
        monkeypatch.setattr(app, "exit", lambda *_: ends.append(1))
        await pilot.press(*WAYS[name])
        await pilot.pause()
        keys = set(bound(app))
        seen = await play(app, pilot, SCRIPTS[name])
        keys |= set(bound(app))
        seen |= await play(app, pilot, here(name, app))
        if name == "overview":
            seen |= await play(app, pilot, everywhere(app, tmp_path, ends))
        else:
            active = app.screen.active_bindings
            seen |= {key for key in keys if key in active and active[key].node is app}
        assert keys - seen == set(), "bound, and no script looks for an effect"


SIGNS = {
    "↑": "up", "↓": "down", "←": "left", "→": "right", "PgUp": "pageup", "PgDn": "pagedown",
    "esc": "escape", "?": "question_mark", "[": "left_square_bracket", "]": "right_square_bracket",
    "{": "left_curly_bracket", "}": "right_curly_bracket", "+": "plus", "-": "minus",
    ",": "comma", ".": "full_stop", "/": "slash", ":": "colon",
}  # fmt: skip
"""Keys as help writes them, where that is not their name."""
NO_KEYS = ("digits", "mouse", "escape")
"""Words beside the keys; and the one that is bound only while there is something to close."""


def told(about: str) -> tuple[list[str], set[str]]:
    """The keys that help on a view offers, and every word of what it says of them."""
    lines = [each.plain.rstrip() for each in help_lines(VIEWS, about, 200, palette(), PAGES)]
    kept, on = [], False
    for each in lines:
        if each.startswith("Keys "):
            on = each.startswith("Keys everywhere") or (
                about in HELP_OF and each.startswith(f"Keys in {HELP_OF[about]} ")
            )
        elif not each:
            on = False
        elif on:
            kept.append(each)
    keys = [word for each in kept for word in each[:16].split()]
    words = {word for each in kept for word in re.split(r"[\s;]+|[,:)](?=\s|$)", each)}
    words.update(keys)
    return [SIGNS.get(key, key) for key in keys], {SIGNS.get(word, word) for word in words}


HELP_OF = {view.name: view.title for view in (*VIEWS, *PAGES)}


@pytest.mark.parametrize("name", WAYS)
async def test_help_is_true_for_the_view(dashboard, name):
    async with dashboard(scene(name)[-1], size=SIZE) as (app, pilot):
        await pilot.press(*WAYS[name])
        if name in OPENED:  # help is about what it was called from
            assert app.panel == name
        keys, words = told(name)
        now = bound(app)
        for key in keys:
            assert key in now or key in NO_KEYS, f"help offers {key}, which is not bound"
        digits = {digit(index) for index in range(len(VIEWS))}
        for key, binding in now.items():
            alike = {other for other, each in now.items() if each.action == binding.action}
            if binding.show:
                assert alike & set(words), f"the footer has {key}, help does not"
            assert alike & words or key in digits, f"{key} ({binding.action}) is not in help"


async def click_on(app: DashboardApp, pilot: Any, words: str, *, nth: int = 0) -> None:
    """Clicks where these words stand on the screen, below the header and the views' names."""
    lines = screen_text(app).splitlines()
    found = [(y, line.index(words)) for y, line in enumerate(lines) if y > 1 and words in line]
    y, x = found[nth]
    await pilot.click(offset=(x, y))
    await pilot.pause()


CLICKS: dict[str, list[tuple[str, Holds]]] = {
    "overview": [
        ("vgpu:2", is_at(2)), ("vgpu:2", panel("rank")),
    ],
    "heatmap": [("wait", metric(Heatmap, 1)), ("step", metric(Heatmap, 0))],
    "memory": [("vgpu:2", is_at(2)), ("by rank", by("peak")), ("vgpu:2", panel("rank"))],
    "communication": [],
    "timeline": [("vgpu:2", is_at(2)), ("vgpu:2", panel("rank"))],
    "threads": [("vgpu:2", is_at(2)), ("by rank", by("core")), ("vgpu:2", panel("rank"))],
    "compare": [
        ("time", metric(Compare, 3)), ("traffic", metric(Compare, 2)),
        ("zero2", is_at(8)), ("strategy", lambda app: the(app, Compare).choice.sort == "strategy"),
        ("zero2", panel("overview")),
    ],
    "alerts": [("gil bound", is_at(1)), ("gil bound", panel("rank"))],
    "output": [("Tried to", of_rank(2)), ("Tried to", of_rank(None))],
    "how": [],
    "help": [],
    "rank": [],
    "stacks": [],
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
async def test_every_view_can_be_clicked_on(dashboard, name):
    clicks = CLICKS[name]
    assert clicks or name in ("communication", "how", "help", "rank", "stacks")
    async with dashboard(scene(name)[-1], size=SIZE) as (app, pilot):
        await pilot.press(*WAYS[name])
        await pilot.pause()
        for words, holds in clicks:
            assert not holds(app), words
            await click_on(app, pilot, words)
            await comes(app, pilot, holds, words)
