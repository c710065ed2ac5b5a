"""Whatever is drawn can be read: contrast by WCAG 2.2's formula, and states without any colour."""

from __future__ import annotations

import pytest
from rich.style import Style

from dpwatch.tui.draw.bars import segment_style
from dpwatch.tui.draw.format import UNKNOWN
from dpwatch.tui.draw.palette import (
    COMM_KINDS,
    FILL_KINDS,
    MEMORY_KINDS,
    PHASE_KINDS,
    THEMES,
    TRAFFIC_KINDS,
    WAIT_KINDS,
    palette,
)
from dpwatch.tui.views.registry import VIEWS
from dpwatch.tui.widgets.view import digit

from .scenes import alerted, snapshot, stuck_run, with_lanes, with_output

pytestmark = pytest.mark.usefixtures("unseen")

TEXT, SIGNS = 4.5, 3.0
"""What WCAG asks for: of text (1.4.3), and of signs and large text (1.4.11)."""


def luminance(triplet: tuple[int, int, int]) -> float:
    """Relative luminance, as https://www.w3.org/TR/WCAG22/#dfn-relative-luminance has it."""
    shares = [
        value / 255 / 12.92 if value / 255 <= 0.04045 else ((value / 255 + 0.055) / 1.055) ** 2.4
        for value in triplet
    ]
    return sum(part * share for part, share in zip((0.2126, 0.7152, 0.0722), shares, strict=True))


def contrast(style: Style) -> float:
    """Of a drawn cell: 1 to 21."""
    sides = [luminance(tuple(side.get_truecolor())) for side in (style.color, style.bgcolor)]
    return (max(sides) + 0.05) / (min(sides) + 0.05)


def test_the_formula():
    assert contrast(Style(color="#ffffff", bgcolor="#000000")) == pytest.approx(21)
    assert contrast(Style(color="#777777", bgcolor="#ffffff")) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_every_ink_on_every_ground(theme):
    """More than one scene draws: ranks' and runs' colours, rows under the cursor."""
    colors = palette(theme.dark, theme=theme.name)
    grounds = [Style(bgcolor=each) for each in (theme.background, theme.surface, theme.panel)]
    grounds.append(colors.cursor)
    inks = [getattr(colors, name) for name in INKS] + list(colors.series)
    for ink in inks:
        for ground in grounds:
            assert contrast(ink + Style(bgcolor=ground.bgcolor)) >= TEXT, (ink, ground)
    assert contrast(colors.faint + grounds[0]) >= SIGNS
    for style in (colors.badge, colors.chosen):
        assert contrast(style) >= TEXT
    for kinds in KINDS:
        for kind in kinds.values():
            assert contrast(segment_style(kind)) >= TEXT, kind


INKS = ("text", "strong", "muted", "accent", "good", "warn", "bad")
KINDS = (PHASE_KINDS, MEMORY_KINDS, TRAFFIC_KINDS, COMM_KINDS, WAIT_KINDS, FILL_KINDS)


def drawn(app):
    """Every (text, style) on the screen."""
    for strip in app.screen._compositor.render_strips(app.size):
        for segment in strip:
            if segment.text.strip() and segment.style is not None:
                yield segment.text.strip(), segment.style


def is_text(text: str) -> bool:
    """Letters or digits, which have to be read; the rest are lines, blocks, dots."""
    return any(char.isalnum() or char == UNKNOWN for char in text)


@pytest.mark.parametrize("theme", ["dpwatch-dark", "dpwatch-light"])
async def test_everything_drawn_stands_out_from_what_it_is_drawn_on(dashboard, theme):
    view = with_output(with_lanes(stuck_run()))
    poor: dict[tuple[str, str, float], str] = {}
    async with dashboard(snapshot(view, alerted()), theme=theme) as (app, pilot):
        for keys in (*([digit(index)] for index in range(len(VIEWS))), ["1", "enter"], ["1", "s"]):
            await pilot.press(*keys)
            await pilot.pause()
            for text, style in drawn(app):
                found = contrast(style)
                if is_text(text) and found < TEXT:
                    colors = style.color.get_truecolor().hex, style.bgcolor.get_truecolor().hex
                    poor.setdefault((*colors, round(found, 2)), text[:30])
    assert "\n".join(f"{pair}: {text}" for pair, text in poor.items()) == ""
