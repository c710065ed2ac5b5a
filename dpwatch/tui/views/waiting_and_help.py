"""The waiting screen, which says what to start, and the help. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style

from dpwatch.run.model.snapshot import HostGpu
from dpwatch.text_safety import clean
from dpwatch.tui.draw.bars import stacked
from dpwatch.tui.draw.layout import Block, heading
from dpwatch.tui.draw.palette import (
    MEMORY_KINDS,
    PHASE_KINDS,
    STATE_GLYPHS,
    TRAFFIC_KINDS,
    Kind,
    Palette,
)
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, line, wrapped
from dpwatch.tui.views.host_gpus import gpu_lines
from dpwatch.tui.widgets.view import View, digit

MIN_WIDTH, MIN_HEIGHT = 80, 24

NOTICES = 8
"""The most lines of a notice, which has one per host without a run."""

WITH_TORCH = (
    ("see it work, no GPU needed", "dpwatch demo --gpus 4"),
    (
        "train with the bundled trainer",
        "torchrun --nproc-per-node 4 -m dpwatch.trainer --strategy ddp",
    ),
)
"""What to start if this Python has torch, …"""

ANYWHERE = (
    ("watch your own script, unchanged", "dpwatch run -- torchrun --nproc-per-node 4 train.py"),
)
"""… and in any case: another Python may train."""


def waiting_lines(
    notice: str,
    waiting_text: str,
    gpus: Sequence[HostGpu],
    width: int,
    height: int,
    palette: Palette,
    places: Sequence[str] = (),
    *,
    trains: bool = True,
) -> Block:
    """The screen while there is no run: the GPUs, if there are any, and what to start.

    `places` are the directories searched; `trains`, whether torch is here.
    """
    if waiting_text:
        body = [
            each
            for part in waiting_text.splitlines()
            for each in wrapped(clean(part), min(width, 72), palette.text)
        ]
    else:
        body = []
        for purpose, command in (*(WITH_TORCH if trains else ()), *ANYWHERE):
            body += [
                line((purpose, palette.muted)),
                line(
                    ("  $ " if " -" in command else "    ", palette.faint),
                    (command, palette.strong),
                ),
                Text(),
            ]
    lines = [line(("○ Waiting for a run", palette.accent)), Text(), *body]
    for each in notice.splitlines()[:NOTICES]:
        lines += wrapped(clean(each), min(width, 72), palette.warn)
    lines.append(line(("A run appears here as soon as its first rank reports.", palette.muted)))
    if places:
        looked = clean(f"Looking in {', '.join(places)}")
        lines += wrapped(looked, min(width, 72), palette.faint)
    top: Block = []
    if gpus:
        top = gpu_lines(gpus, width, max(height - len(lines) - 1, 3), palette)
        top.append(Text())
    margin = max((width - max(each.cell_len for each in lines)) // 2, 0)
    above = [Text()] * max((height - len(top) - len(lines)) // 2, 0)
    return [*top, *above, *(line((" " * margin, palette.text), each) for each in lines)]


def too_small_line(width: int, height: int) -> str:
    """The message of a terminal that is too small."""
    return f"dpwatch needs {MIN_WIDTH}×{MIN_HEIGHT} cells; this terminal has {width}×{height}"


_EVERYWHERE = (
    ("esc", "back: clear the filter, close what is open; never quits"),
    ("s", "Python stacks of all ranks, or of the open rank; s again: refresh"),
    ("space", "pause the screen, and resume; training and recording go on"),
    ("[  ]", "pause and step back and forward in time; { } ten at a time"),
    ("+  -", "refresh less or more often, every 0.1 to 10 s (Timeline: zoom)"),
    ("tab n  p", "next and previous run"),
    ("y", "copy the row under the cursor, or the whole view, as text"),
    ("e", "save the screen as an SVG file where dpwatch was started"),
    (":  ctrl+p", "every command; also themes: dark, light, contrast, safe for the colour-blind"),
    ("?", "this help; ? or esc closes it"),
    ("q", "quit; the training is not affected"),
    ("mouse", "click a view, a run, a row; the wheel scrolls"),
)
_PHASES = {
    "data": "waiting for the next batch",
    "h2d": "copying the batch to the device",
    "forward": "the model's forward (dp, device 0: scatter to gather)",
    "backward": "the backward pass (dp, device 0: to the reduced gradients)",
    "optimizer": "the optimizer's step",
    "other": "the rest of the step",
}
_MEMORY = {
    "params": "parameters",
    "grads": "gradients",
    "optimizer": "optimizer state, such as Adam's two moments",
    "activations": "saved in forward for backward",
    "buffers": "module buffers and communication buckets",
    "temp": "short-lived tensors",
    "gathered": "unsharded parameters (FSDP, ZeRO-3)",
    "untold": "the source reports a total only",
}
_TRAFFIC = {
    "sent": "bytes a device sends in a step, by the algorithm",
    "received": "bytes a device receives in a step",
}
_WORDS = (
    (
        "GIL wait",
        "share of the step a device's thread was blocked where only Python's global "
        "interpreter lock can block it",
    ),
    ("idle", "share it was blocked otherwise: waiting for data, another device or another rank"),
    ("queue", "share it was ready to run but no core was free: the host is oversubscribed"),
    ("exposed", "communication that compute waited for; the rest is hidden behind compute"),
    ("last to arrive", "the rank that most often entered a collective last, and was waited for"),
    ("step", "median over recent steps; a full phase bar is the slowest device's step"),
    (
        "memory bar",
        "a full bar is the device's capacity or, where it has none, the run's largest "
        "peak; the heading gives the figure",
    ),
    ("d0 memory, d0 traffic", "device 0's over the median of the other devices'; 1.00× is even"),
    (
        "virtual device",
        "a share of this host's CPU cores and a ledger of bytes standing for a GPU: "
        "training and bytes are real, times are this machine's",
    ),
    ("–", "unknown; never shown as zero"),
)
_STATES = (
    ("starting", "known, no step yet"),
    ("running", "steps are coming in"),
    ("finished", "ended normally; the last state stays"),
    ("failed", "raised an exception or exited with an error"),
    ("stalled", "no step for a long time"),
    ("hung", "ranks wait, and nothing moves"),
    ("lost", "the process exited without reporting"),
    ("stale", "no report from the hub; showing last known values"),
)


def help_lines(
    views: Sequence[View], about: str, width: int, palette: Palette, pages: Sequence[View] = ()
) -> Block:
    """Keys, colours and letters, states, and what each number means.

    Args:
        views: Every view.
        about: Name of the one whose keys come first.
        width: Cells.
        palette: Theme.
        pages: What is opened from views; their keys are only listed if they come first.
    """
    room = min(width, 110)
    here = [view for view in (*views, *pages) if view.name == about]
    others = [view for view in views if view.name not in (about, "help")]
    sections: list[tuple[str, Block]] = [
        *((f"Keys in {view.title}", _keys(view.keys, room, palette)) for view in here),
        ("Keys everywhere", _keys([("digits", _digits(views)), *_EVERYWHERE], room, palette)),
        *((f"Keys in {view.title}", _keys(view.keys, room, palette)) for view in others),
        ("Phases of a step", _kinds(_PHASES, PHASE_KINDS, room, palette)),
        ("Memory", _kinds(_MEMORY, MEMORY_KINDS, room, palette)),
        ("Traffic", _kinds(_TRAFFIC, TRAFFIC_KINDS, room, palette)),
        ("States", [_state(name, text, palette) for name, text in _STATES]),
        ("Numbers", _words(room, palette)),
    ]
    lines: Block = []
    for title, body in sections:
        lines += [heading(title, room, palette), *body, Text()]
    return [fitted(each, width) for each in lines]


def _digits(views: Sequence[View]) -> str:
    return ", ".join(f"{digit(index)} {view.title}" for index, view in enumerate(views))


def _keys(keys: Sequence[tuple[str, str]], width: int, palette: Palette) -> Block:
    return [
        each
        for key, text in keys
        for each in _told(line((f"{key:<16}", palette.strong)), text, width, palette.text)
    ]


def _kinds(texts: dict[str, str], kinds: dict[str, Kind], width: int, palette: Palette) -> Block:
    lines: Block = []
    for name, text in texts.items():
        label = line(
            stacked({name: 1.0}, {name: kinds[name]}, 3, palette),
            (f" {kinds[name].letter} {kinds[name].name:<16}  ", palette.text),
        )
        lines += _told(label, text, width, palette.muted)
    return lines


def _state(name: str, text: str, palette: Palette) -> Text:
    return line((f"{STATE_GLYPHS[name]} {name:<20}  ", palette.state(name)), (text, palette.muted))


def _words(width: int, palette: Palette) -> Block:
    return [
        each
        for name, text in _WORDS
        for each in _told(line((f"{name:<24}", palette.text)), text, width, palette.muted)
    ]


def _told(label: Text, text: str, width: int, style: Style) -> Block:
    """A label's meaning, beside it and on as many lines as it takes."""
    lines = wrapped(text, width, style, indent=label.cell_len)
    return [line(label, (lines[0].plain.strip(), style)), *lines[1:]]
