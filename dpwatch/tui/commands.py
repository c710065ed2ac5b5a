"""What the command palette offers: a title, what it does, and the app's action."""

from __future__ import annotations

from dpwatch.tui.views.registry import VIEWS
from dpwatch.tui.widgets.view import digit

COMMANDS = (
    *(
        (view.title, f"Show the view {view.title} (key {digit(index)})", f"panel('{view.name}')")
        for index, view in enumerate(VIEWS)
    ),
    ("Pause", "Hold the screen or go on (space)", "pause"),
    ("Back in time", "Hold the screen and show the moment before ([, ten of them {)", "rewind(-1)"),
    ("Forward in time", "Show the moment after (], ten of them })", "rewind(1)"),
    ("Update more often", "Take a snapshot more often (-)", "pace(-1)"),
    ("Update less often", "Take a snapshot less often (+)", "pace(1)"),
    ("Filter", "Show only some rows (/)", "filter"),
    ("Stacks", "Where every rank's Python stands, or the open rank's (s)", "stacks"),
    ("Next run", "Switch to the next run (n)", "run(1)"),
    ("Previous run", "Switch to the run before (p)", "run(-1)"),
    ("Copy", "Copy the row, or the view, as text (y)", "copy"),
    ("Picture", "Save the screen as an SVG file (e)", "save"),
    ("Theme", "Change the colours", "change_theme"),
    ("Quit", "Leave; the training goes on (q)", "quit"),
)
