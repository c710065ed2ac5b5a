"""The command palette's entries: a title, what it does, and the app's action."""

from __future__ import annotations

from dpwatch.tui.views.registry import VIEWS
from dpwatch.tui.widgets.view import digit

COMMANDS = (
    *(
        (view.title, f"Show the view {view.title} (key {digit(index)})", f"panel('{view.name}')")
        for index, view in enumerate(VIEWS)
    ),
    ("Pause", "Pause the screen or resume (space)", "pause"),
    ("Back in time", "Pause the screen and step back ([, ten steps {)", "rewind(-1)"),
    ("Forward in time", "Step forward (], ten steps })", "rewind(1)"),
    ("Refresh more often", "Refresh more often (-)", "pace(-1)"),
    ("Refresh less often", "Refresh less often (+)", "pace(1)"),
    ("Filter", "Show only some rows (/)", "filter"),
    ("Stacks", "The Python stacks of every rank, or of the open rank (s)", "stacks"),
    ("Next run", "Switch to the next run (n)", "run(1)"),
    ("Previous run", "Switch to the previous run (p)", "run(-1)"),
    ("Copy", "Copy the row, or the view, as text (y)", "copy"),
    ("Picture", "Save the screen as an SVG file (e)", "save"),
    ("Theme", "Change the colours", "change_theme"),
    ("Quit", "Quit; the training goes on (q)", "quit"),
)
