"""The dashboard's views in the order of their digits, and help. Add a line to add a view."""

from __future__ import annotations

from dpwatch.tui.widgets.device_rows import SORT_KEYS
from dpwatch.tui.widgets.view import View

_MOVE = ("↑ ↓  j k", "move; g G to the ends, PgUp PgDn by a page")
_SCROLL = ("↑ ↓  j k", "scroll; g G to the ends, PgUp PgDn by a page")
_DEVICES = "words in a device's name, state or host"
_RANK = ("enter", "open the rank")

VIEWS = (
    View(
        name="overview",
        title="Overview",
        short="Overview",
        widget="views.panels:Overview",
        keys=(_MOVE, _RANK, *SORT_KEYS),
        filters=_DEVICES,
        focus="#ranks",
    ),
    View(
        name="heatmap",
        title="Ranks",
        short="Ranks",
        widget="views.ranks.widget:Heatmap",
        keys=(
            ("← ↑ ↓ →", "move; g G to the ends, PgUp PgDn by a page"),
            ("m  M", "colour by the next or previous metric"),
            ("w", "go to the rank with the highest value"),
            _RANK,
        ),
    ),
    View(
        name="memory",
        title="Memory",
        short="Mem",
        widget="views.memory:Memory",
        keys=(_MOVE, *SORT_KEYS, _RANK),
        filters=_DEVICES,
    ),
    View(
        name="communication",
        title="Communication",
        short="Comm",
        widget="views.communication.panel:Communication",
        keys=(_SCROLL,),
    ),
    View(
        name="timeline",
        title="Timeline",
        short="Time",
        widget="views.timeline.widget:Timeline",
        keys=(
            _MOVE,
            ("+  -", "zoom in, zoom out; also ctrl and the wheel"),
            ("←  →", "earlier, later; at the end it follows the newest step again"),
            (",  .", "start at the previous step, the next step; space pauses the screen"),
            ("f", "follow the newest step"),
            _RANK,
        ),
    ),
    View(
        name="threads",
        title="GIL and idle",
        short="GIL",
        widget="views.gil:Threads",
        keys=(_MOVE, *SORT_KEYS, _RANK),
        filters=_DEVICES,
    ),
    View(
        name="compare",
        title="Compare",
        short="Comp",
        widget="views.compare.widget:Compare",
        keys=(
            _MOVE,
            ("enter", "open the run"),
            ("m  M", "compare by the next or previous metric"),
            (", .  r", "sort by the previous or next column; reverse"),
            ("/", "show only runs with these words in strategy, title or state"),
        ),
        filters="words in a strategy's name, title or state",
    ),
    View(
        name="alerts",
        title="Alerts",
        short="Alerts",
        widget="views.alerts.widget:Alerts",
        keys=(_MOVE, ("enter", "open the run and rank concerned")),
    ),
    View(
        name="output",
        title="Output",
        short="Out",
        widget="views.output.widget:Output",
        keys=(
            ("↑ ↓  j k", "scroll, PgUp PgDn by a page; scrolling up stops following the newest"),
            ("G  end  f", "follow the newest line again; g to the oldest"),
            (
                "←  →",
                "only the previous rank, the next rank, all ranks; or click one",
            ),
            ("t", "only stderr, which is marked with !; both streams again"),
            ("/", "show only lines with these words"),
        ),
        filters="words in a line",
    ),
    View(
        name="how",
        title="How it works",
        short="How",
        widget="views.how_it_works.panel:How",
        keys=(_SCROLL,),
    ),
    View(
        name="help",
        title="Help",
        short="",
        widget="views.panels:Help",
        keys=(_SCROLL,),
        waits=False,
    ),
)
PAGES = (
    View(
        name="rank",
        title="a rank's page",
        short="",
        widget="views.panels:RankDetail",
        keys=(_SCROLL,),
    ),
    View(
        name="stacks",
        title="the stacks",
        short="",
        widget="views.stacks.widget:StackPanel",
        keys=(_SCROLL,),
    ),
)
"""What is opened from views and has no digit; help lists its keys."""
BY_NAME = {view.name: view for view in VIEWS}
