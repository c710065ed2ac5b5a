"""Diagnoses, with their evidence. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpwatch.run.model.ranks import name_ranks
from dpwatch.run.model.snapshot import Diagnosis, RunView
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.layout import Block, facts
from dpwatch.tui.draw.palette import SEVERITY_GLYPHS, STATE_GLYPHS, Palette
from dpwatch.tui.draw.sentences import run_title
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, line, wrapped

_BAD = ("failed", "hung", "lost")


def diagnosis_lines(
    name: str, diagnosis: Diagnosis, width: int, palette: Palette, *, chosen: bool
) -> Block:
    """One diagnosis: severity, kind, ranks and since when; the text; the evidence as a table.

    `name` is its run's.
    """
    severity = clean(diagnosis.severity, 12)
    kind = clean(diagnosis.kind, 40).replace("_", " ")
    head = line(
        ("▸ " if chosen else "  ", palette.accent),
        (f"{SEVERITY_GLYPHS.get(severity, '·')} {severity.upper():<9}", palette.severity(severity)),
        (f" {kind}", palette.strong),
        (f"   {who(diagnosis.ranks)} · since step {diagnosis.since_step}", palette.text),
        (f" · {name}", palette.muted),
    )
    body = wrapped(clean(diagnosis.text, 2000), min(width, 110) - 2, palette.text, indent=4)
    evidence = facts([(_name(k), v) for k, v in _evidence(diagnosis.evidence)], palette)
    indented = [line(("      ", palette.muted), each) for each in evidence]
    return [fitted(each, width) for each in (head, *body, *indented)]


def no_diagnosis_lines(views: Sequence[RunView], width: int, palette: Palette) -> Block:
    """What the panel says when there is nothing to list: runs that failed anyway."""
    if not views:
        return [line(("no run so far", palette.muted))]
    bad = [view for view in views if view.run.state in _BAD]
    if not bad:
        note = "no problem found so far, in any run"
        return [line(("✓ ", palette.good), (note, palette.text))]
    lines: Block = []
    for view in bad:
        state = view.run.state
        head = (f"{STATE_GLYPHS[state]} {state.upper()}  ", palette.state(state))
        lines.append(fitted(line(head, (run_title(view.run), palette.strong)), width))
        lines += wrapped(clean(view.run.reason), min(width, 110) - 2, palette.text, indent=2)
    note = "no cause was found; see what the ranks printed (9 Output)"
    return [*lines, Text(), line((note, palette.muted))]


def who(ranks: Sequence[int]) -> str:
    """The ranks, or `the whole run` where there are none."""
    return name_ranks(ranks) if ranks else "the whole run"


def _evidence(evidence: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values with units; names of nested objects are prefixed with its own."""
    rows: list[tuple[str, str]] = []
    for name, value in evidence.items():
        if isinstance(value, Mapping):
            rows += _evidence({str(k): v for k, v in value.items()}, f"{prefix}{name} ")
        else:
            rows.append((f"{prefix}{name}", with_unit(name, value)))
    return rows


_SHARES = ("share", "cost", "gil_wait", "idle", "runqueue_wait")
_SUFFIXES = ("_bytes", "_bytes_per_step", "_ms", "_ns", "_s", "_share")


def _name(name: str) -> str:
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            name = name.removesuffix(suffix) + (" a step" if "per_step" in suffix else "")
            break
    return clean(name, 48).replace("_", " ")


def with_unit(name: str, value: Any) -> str:
    """A value of a diagnosis' evidence, in the unit that its name implies."""
    if isinstance(value, list | tuple):
        return clean(", ".join(with_unit(name, each) for each in value), 200)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return fmt.UNKNOWN if value is None else clean(str(value), 200)
    if name == "bytes" or name.endswith(("_bytes", "bytes_per_step")):
        return fmt.size(value)
    if name.endswith("_ms"):
        return fmt.millis(value)
    if name.endswith("_ns"):
        return fmt.millis(value / 1e6)
    if name.endswith("_s"):
        return fmt.millis(value * 1e3)
    if "_over_" in name or name.endswith(("ratio", "factor")):
        return fmt.ratio(value)
    if any(word in name for word in _SHARES):
        return fmt.share(value)
    return str(value) if isinstance(value, int) else fmt.number(value)
