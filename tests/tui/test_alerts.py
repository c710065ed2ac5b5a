"""Alerts: what holds, what is over, with or without a history."""

from __future__ import annotations

from dpwatch.tui.alerts import alert_lines, entries
from dpwatch.tui.palette import palette

from .scenes import dp_run, gil_bound, hostile_run, past, snapshot, with_alerts


def told(*views, wall_s=1200.0, cursor=0):
    now = snapshot(*views, wall_s=wall_s)
    lines, tops = alert_lines(entries(now), now, cursor, 100, palette())
    return "\n".join(each.plain.rstrip() for each in lines), tops


def test_without_a_history_only_what_holds_is_shown():
    text, tops = told(dp_run())
    assert "WARNING" in text
    assert "Over" not in text
    assert "began" not in text
    assert len(tops) == 2


def test_what_is_over_follows_with_its_times_the_latest_first():
    early = past(kind="hang", ended_s=1010.0)
    text, tops = told(with_alerts(early, past()))
    assert len(tops) == 4
    assert "✓ straggler  was warning  rank 2 · since step 40" in text
    assert "00:16:40 to 00:18:10: lasted 1:30, over since 1:50" in text
    assert text.index("Over") < text.index("straggler") < text.index("hang")


def test_what_holds_tells_since_when():
    found = gil_bound()
    holds = past(kind=found.kind, ranks=found.ranks, began_s=1140.0, ended_s=None)
    text, tops = told(with_alerts(holds))
    assert "began 00:19:00, holds for 1:00" in text
    assert len(tops) == 2


def test_what_held_when_a_run_ended_does_not_go_on():
    found = gil_bound()
    holds = past(kind=found.kind, ranks=found.ranks, began_s=1140.0, ended_s=None)
    text, _ = told(with_alerts(holds, state="finished"))
    assert "began 00:19:00, held until the run ended" in text


def test_when_nothing_holds_any_more_that_is_said_first():
    view = with_alerts(past(), diagnoses=[])
    text, tops = told(view)
    assert text.startswith("✓ nothing holds now")
    assert tops == [3]


def test_text_of_ranks_is_only_text():
    bad = hostile_run().run.diagnoses[0].text
    text, _ = told(
        with_alerts(past(kind=bad, severity=bad, text=bad, began_s=1e300)), hostile_run()
    )
    assert not any(ord(c) < 32 and c != "\n" for c in text)
