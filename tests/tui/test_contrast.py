"""Whatever is drawn can be read: contrast by WCAG 2.2's formula, and states without any colour."""

from __future__ import annotations

import pytest
from rich.style import Style

from dpwatch.tui.palette import THEMES
from dpwatch.tui.view import digit
from dpwatch.tui.views import VIEWS

from .scenes import alerted, snapshot, stuck_run, with_lanes, with_output

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


def drawn(app):
    """Every (text, style) on the screen."""
    for strip in app.screen._compositor.render_strips(app.size):
        for segment in strip:
            if segment.text.strip() and segment.style is not None:
                yield segment.text.strip(), segment.style


def is_text(text: str) -> bool:
    """Letters or digits, which have to be read; the rest are lines, blocks, dots."""
    return any(char.isalnum() for char in text)


@pytest.mark.parametrize("theme", [theme.name for theme in THEMES])
async def test_everything_drawn_stands_out_from_what_it_is_drawn_on(dashboard, theme):
    view = with_output(with_lanes(stuck_run()))
    poor = set()
    async with dashboard(snapshot(view, alerted()), theme=theme) as (app, pilot):
        for keys in (*([digit(index)] for index in range(len(VIEWS))), ["1", "enter"], ["1", "s"]):
            await pilot.press(*keys)
            await pilot.pause()
            for text, style in drawn(app):
                found = contrast(style)
                if found < (TEXT if is_text(text) else 0):
                    colors = style.color.get_truecolor().hex, style.bgcolor.get_truecolor().hex
                    poor.add((*colors, round(found, 1), text[:20] if len(poor) < 40 else ""))
    assert not poor
