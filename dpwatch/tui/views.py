"""The dashboard's views in the order of their digits, and help. A view is added by a line here."""

from __future__ import annotations

from dpwatch.tui.device_rows import SORT_KEYS
from dpwatch.tui.view import View

_MOVE = ("↑ ↓  j k", "move; g G to the ends, PgUp PgDn by a page")
_SCROLL = ("↑ ↓  j k", "scroll; g G to the ends, PgUp PgDn by a page")
_DEVICES = "words in a device's name, state or host"
_RANK = ("enter", "open the rank")

VIEWS = (
    View(
        name="overview",
        title="Overview",
        short="Overview",
        widget="panels:Overview",
        keys=(_MOVE, _RANK, *SORT_KEYS),
        filters=_DEVICES,
        focus="#ranks",
    ),
    View(
        name="heatmap",
        title="Ranks",
        short="Ranks",
        widget="heat_view:Heatmap",
        keys=(
            ("← ↑ ↓ →", "move; g G to the ends, PgUp PgDn by a page"),
            ("m  M", "colour by the next metric, by the one before"),
            ("w", "go to the rank where it is highest"),
            _RANK,
        ),
    ),
    View(
        name="memory",
        title="Memory",
        short="Mem",
        widget="memory:Memory",
        keys=(_MOVE, *SORT_KEYS, _RANK),
        filters=_DEVICES,
    ),
    View(
        name="communication",
        title="Communication",
        short="Comm",
        widget="traffic:Communication",
        keys=(_SCROLL,),
    ),
    View(
        name="timeline",
        title="Timeline",
        short="Time",
        widget="timeline_view:Timeline",
        keys=(
            _MOVE,
            ("+  -", "show less time, more time; so does ctrl and the wheel"),
            ("←  →", "earlier, later; at the end the newest step is followed again"),
            (",  .", "begin with the step before, the step after; space holds the screen"),
            ("f", "follow the newest step"),
            _RANK,
        ),
    ),
    View(
        name="threads",
        title="GIL and idle",
        short="GIL",
        widget="threads:Threads",
        keys=(_MOVE, *SORT_KEYS, _RANK),
        filters=_DEVICES,
    ),
    View(
        name="compare",
        title="Compare",
        short="Comp",
        widget="compare_view:Compare",
        keys=(
            _MOVE,
            ("enter", "open the run"),
            ("m  M", "look at the runs by the next metric, by the one before"),
            (", .  r", "sort by the column before or after; the other way round"),
            ("/", "show only runs with these words in strategy, title or state"),
        ),
        filters="words in a strategy's name, title or state",
    ),
    View(
        name="alerts",
        title="Alerts",
        short="Alerts",
        widget="alerts_view:Alerts",
        keys=(_MOVE, ("enter", "open the run and rank concerned")),
    ),
    View(
        name="output",
        title="Output",
        short="Out",
        widget="output_view:Output",
        keys=(
            ("↑ ↓  j k", "scroll, PgUp PgDn by a page; scrolling up stops following the newest"),
            ("G  end  f", "follow the newest line again; g to the oldest"),
            (
                "←  →",
                "only the rank before, only the next one, all of them; so does a click on one",
            ),
            ("t", "only what was written to stderr, marked with !; all of it again"),
            ("/", "show only lines with these words"),
        ),
        filters="words in a line",
    ),
    View(
        name="how",
        title="How it works",
        short="How",
        widget="how_it_works:How",
        keys=(_SCROLL,),
    ),
    View(name="help", title="Help", short="", widget="panels:Help", keys=(_SCROLL,), waits=False),
)
PAGES = (
    View(name="rank", title="a rank's page", short="", widget="panels:RankDetail", keys=(_SCROLL,)),
    View(
        name="stacks",
        title="the stacks",
        short="",
        widget="stacks_view:StackPanel",
        keys=(_SCROLL,),
    ),
)
"""What is opened from views and has no digit, for help to tell of."""
BY_NAME = {view.name: view for view in VIEWS}
