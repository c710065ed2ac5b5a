"""Every colour, letter and glyph that the dashboard draws with, for dark and light themes.

Phases and memory categories use the Okabe–Ito colours, which are distinct for people with any
common colour blindness, and each has a letter too, drawn into the bars. States and severities are
always written out as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rich.style import Style
from textual.theme import Theme

from dpwatch.wire.messages import CATEGORIES, PHASES

PHASE_NAMES = (*PHASES, "other")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of bar segment: its name, its letter, its colour."""

    name: str
    letter: str
    color: str
    dark_letter: bool = True


PHASE_KINDS = {
    "data": Kind(name="data", letter="D", color="#cc79a7"),
    "h2d": Kind(name="h2d", letter="H", color="#f0e442"),
    "forward": Kind(name="forward", letter="F", color="#56b4e9"),
    "backward": Kind(name="backward", letter="B", color="#0072b2", dark_letter=False),
    "optimizer": Kind(name="optimizer", letter="O", color="#e69f00"),
    "other": Kind(name="other", letter="·", color="#687380", dark_letter=False),
}
MEMORY_KINDS = {
    "params": Kind(name="params", letter="P", color="#56b4e9"),
    "grads": Kind(name="grads", letter="G", color="#cc79a7"),
    "optimizer": Kind(name="optimizer", letter="O", color="#e69f00"),
    "activations": Kind(name="activations", letter="A", color="#009e73"),
    "buffers": Kind(name="buffers", letter="B", color="#f0e442"),
    "temp": Kind(name="temp", letter="T", color="#687380", dark_letter=False),
    "gathered": Kind(name="gathered", letter="U", color="#d55e00"),
    "untold": Kind(name="no breakdown", letter="?", color="#8d99ae"),
}
TRAFFIC_KINDS = {
    "sent": Kind(name="sent", letter="S", color="#56b4e9"),
    "received": Kind(name="received", letter="R", color="#e69f00"),
}
COMM_KINDS = {
    "exposed": Kind(name="exposed", letter="E", color="#d55e00"),
    "overlapped": Kind(name="hidden behind compute", letter="H", color="#56b4e9"),
}
WAITING = Kind(name="waiting for another device", letter="W", color="#009e73")
WAIT_KINDS = {
    "compute": Kind(name="on a core", letter="C", color="#56b4e9"),
    "queue": Kind(name="queue (no free core)", letter="Q", color="#687380", dark_letter=False),
    "gil": Kind(name="GIL wait", letter="G", color="#d55e00"),
    "idle": Kind(name="idle", letter="I", color="#e69f00"),
}
FILL_KINDS = {
    "filled": Kind(name="filled", letter="F", color="#009e73"),
    "free": Kind(name="free", letter="·", color="#687380", dark_letter=False),
}
assert tuple(PHASE_KINDS) == PHASE_NAMES
assert tuple(MEMORY_KINDS)[:-1] == CATEGORIES

STATE_GLYPHS = {
    "starting": "○",
    "running": "●",
    "finished": "✓",
    "failed": "✗",
    "stalled": "‖",
    "hung": "‖",
    "lost": "?",
    "stale": "~",
    "waiting": "○",
}
TELLING_STATES = ("failed", "stalled", "lost")
"""States of a rank that matter more than any of its figures."""
SEVERITY_GLYPHS = {"info": "i", "warning": "!", "critical": "✗"}
SERIES_COLORS_DARK = ("#56b4e9", "#e69f00", "#2ac59b", "#d68bb6", "#f0e442", "#ff7a33", "#a7b4c4")
SERIES_COLORS_LIGHT = ("#00659e", "#8f5500", "#006f50", "#9e3f75", "#6b6200", "#a83c00", "#4a5663")
HEAT_DARK = ("#3b528b", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
HEAT_LIGHT = (
    "#8fb3cc",
    "#6f9dbf",
    "#5487b1",
    "#3f71a2",
    "#305b90",
    "#26477c",
    "#1c3364",
    "#121f4a",
)
"""From lowest to highest, distinct by brightness alone."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Palette:
    """The styles of one theme. `mono` draws bars with letters, for terminals without colour."""

    dark: bool
    mono: bool
    text: Style
    strong: Style
    muted: Style
    faint: Style
    accent: Style
    good: Style
    warn: Style
    bad: Style
    track: str
    cursor: Style
    badge: Style
    series: tuple[Style, ...]
    heat: tuple[Style, ...]
    chosen: Style

    def state(self, state: str) -> Style:
        """Style of a run's or a rank's state word."""
        if state in ("failed", "hung", "lost"):
            return self.bad
        if state in ("stalled", "stale"):
            return self.warn
        return self.good if state in ("running", "finished") else self.muted

    def severity(self, severity: str) -> Style:
        """Style of a diagnosis' severity word."""
        return {"critical": self.bad, "warning": self.warn}.get(severity, self.accent)


_DARK = {
    "text": "#d5dce6", "strong": "#ffffff", "muted": "#929eac", "faint": "#566273",
    "accent": "#5fc3f2", "good": "#2ac59b", "warn": "#f2b134", "bad": "#ff6b5e",
    "track": "#232b36",
}  # fmt: skip
_LIGHT = {
    "text": "#1f2933", "strong": "#000000", "muted": "#566270", "faint": "#87929f",
    "accent": "#00659e", "good": "#00694c", "warn": "#8a5300", "bad": "#b42318",
    "track": "#dde3ea",
}  # fmt: skip
_INKS = {
    # Black and white; nothing in between that has to be read.
    "dpwatch-contrast": _DARK
    | {"text": "#ffffff", "muted": "#e0e0e0", "faint": "#a8a8a8", "accent": "#66d9ff"}
    | {"good": "#5cff9d", "warn": "#ffe14d", "bad": "#ff9088", "track": "#3a3a3a"},
    # Good and bad are distinct for every colour blindness: blue and orange, never green and red.
    "dpwatch-safe": _DARK
    | {"accent": "#cc9fd8", "good": "#56b4e9", "warn": "#f0e442", "bad": "#ff8c42"},
}


@lru_cache(maxsize=16)
def palette(dark: bool = True, mono: bool = False, theme: str = "") -> Palette:
    """The palette for a theme of that lightness; some themes have colours of their own."""
    ink = dict(_INKS.get(theme, _DARK if dark else _LIGHT))
    track = ink.pop("track")
    styles = {name: Style(color=color) for name, color in ink.items()}
    bold = Style(bold=True)
    for name in ("strong", "warn", "bad", "good"):
        styles[name] += bold
    return Palette(
        dark=dark,
        mono=mono,
        track=track,
        cursor=Style(bgcolor="#243447" if dark else "#d3e4f3", bold=mono),
        badge=Style(color="#0d1117", bgcolor="#f2b134", bold=True),
        series=tuple(Style(color=c) for c in (SERIES_COLORS_DARK if dark else SERIES_COLORS_LIGHT)),
        heat=tuple(Style(color=c, bgcolor=track) for c in (HEAT_DARK if dark else HEAT_LIGHT)),
        chosen=Style(
            color="#0d1117" if dark else "#ffffff",
            bgcolor="#ffffff" if dark else "#000000",
            bold=True,
            reverse=mono,
        ),
        **styles,
    )


def _theme(name: str, *, dark: bool, **colors: str) -> Theme:
    """A Textual theme in our colours."""
    ink = _INKS.get(name, _DARK if dark else _LIGHT)
    return Theme(
        name=name,
        primary=ink["accent"],
        secondary=ink["good"],
        accent=ink["warn"],
        warning=ink["warn"],
        error=ink["bad"],
        success=ink["good"],
        foreground=ink["text"],
        background=colors["background"],
        surface=colors["surface"],
        panel=colors["panel"],
        dark=dark,
        variables={"border": colors["border"], "footer-key-foreground": ink["accent"]},
    )


_NIGHT = {"background": "#0d1117", "surface": "#141a22", "panel": "#1a212b", "border": "#303a47"}
_DAY = {"background": "#fbfcfd", "surface": "#f1f4f7", "panel": "#e6ebf0", "border": "#c3ccd6"}
_BLACK = {"background": "#000000", "surface": "#000000", "panel": "#1c1c1c", "border": "#a8a8a8"}

THEMES = (
    _theme("dpwatch-dark", dark=True, **_NIGHT),
    _theme("dpwatch-light", dark=False, **_DAY),
    _theme("dpwatch-contrast", dark=True, **_BLACK),
    _theme("dpwatch-safe", dark=True, **_NIGHT),
)
