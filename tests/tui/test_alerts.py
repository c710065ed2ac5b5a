"""Alerts: what holds, what is over, with or without a history."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from dpwatch.tui.alerts import alert_lines, entries
from dpwatch.tui.palette import palette

from .scenes import dp_run, gil_bound, hostile_run, snapshot


@dataclass
class Past:
    """An entry of a run's history."""

    kind: str = "straggler"
    severity: str = "warning"
    ranks: list[int] = field(default_factory=lambda: [2])
    since_step: int = 40
    text: str = "rank 2 arrived last."
    began_s: float = 1000.0
    ended_s: float | None = 1090.0


class WithHistory:
    """A run whose hub keeps a history."""

    def __init__(self, run, alerts):
        self._run, self.alerts = run, alerts

    def __getattr__(self, name):
        return getattr(self._run, name)


def view_with(*alerts):
    view = dp_run()

    class View:
        run = WithHistory(view.run, list(alerts))

    return View()


def told(*views, wall_s=1200.0, cursor=0):
    now = snapshot(*views, wall_s=wall_s)
    lines, tops = alert_lines(entries(now), now, cursor, 100, palette())
    return "\n".join(each.plain.rstrip() for each in lines), tops


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_without_a_history_only_what_holds_is_shown():
    text, tops = told(dp_run())
    assert "WARNING" in text
    assert "Over" not in text
    assert "began" not in text
    assert len(tops) == 2


def test_what_is_over_follows_with_its_times_the_latest_first():
    early = Past(kind="hang", ended_s=1010.0)
    text, tops = told(view_with(early, Past()))
    assert len(tops) == 4
    assert "✓ straggler  was warning  rank 2 · since step 40" in text
    assert "00:16:40 to 00:18:10: lasted 1:30, over since 1:50" in text
    assert text.index("Over") < text.index("straggler") < text.index("hang")


def test_what_holds_tells_since_when():
    found = gil_bound()
    holds = Past(kind=found.kind, ranks=found.ranks, began_s=1140.0, ended_s=None)
    text, tops = told(view_with(holds))
    assert "began 00:19:00, holds for 1:00" in text
    assert len(tops) == 2


def test_when_nothing_holds_any_more_that_is_said_first():
    view = view_with(Past())
    view.run._run = dp_run().run.__class__(**{
        name: getattr(dp_run().run, name) for name in dp_run().run.__struct_fields__
    } | {"diagnoses": []})  # fmt: skip
    text, tops = told(view)
    assert text.startswith("✓ nothing holds now")
    assert tops == [3]


def test_text_of_ranks_is_only_text():
    bad = hostile_run().run.diagnoses[0].text
    text, _ = told(view_with(Past(kind=bad, severity=bad, text=bad, began_s=1e300)), hostile_run())
    assert not any(ord(c) < 32 and c != "\n" for c in text)
