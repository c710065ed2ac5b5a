"""Alerts: what holds, what is over, with or without a history."""

from __future__ import annotations

from msgspec.structs import replace

from dpwatch.tui.draw.palette import palette
from dpwatch.tui.draw.sentences import strategy_names
from dpwatch.tui.views.alerts.entries import alert_lines, entries

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
    assert "00:16:40 to 00:18:10: lasted 1:30, resolved 1:50 ago" in text
    assert text.index("Resolved") < text.index("straggler") < text.index("hang")


def test_what_holds_tells_since_when():
    found = gil_bound()
    holds = past(kind=found.kind, ranks=found.ranks, began_s=1140.0, ended_s=None)
    text, tops = told(with_alerts(holds))
    assert "began 00:19:00, active for 1:00" in text
    assert len(tops) == 2


def test_what_held_when_a_run_ended_does_not_go_on():
    found = gil_bound()
    holds = past(kind=found.kind, ranks=found.ranks, began_s=1140.0, ended_s=None)
    text, _ = told(with_alerts(holds, state="finished"))
    assert "began 00:19:00, active until the run ended" in text


def test_when_nothing_holds_any_more_that_is_said_first():
    view = with_alerts(past(), diagnoses=[])
    text, tops = told(view)
    assert text.startswith("✓ no alert is active")
    assert tops == [3]


def test_text_of_ranks_is_only_text():
    bad = hostile_run().run.diagnoses[0].text
    text, _ = told(
        with_alerts(past(kind=bad, severity=bad, text=bad, began_s=1e300)), hostile_run()
    )
    assert not any(ord(c) < 32 and c != "\n" for c in text)


def other(view, run_id, **more):
    """The same run once more, as another."""
    return replace(view, run=replace(view.run, run_id=run_id, **more))


def test_the_same_in_several_runs_stands_together():
    first, second = dp_run(), other(dp_run(), "two", title="other")
    kinds = [d.kind.replace("_", " ") for d in first.run.diagnoses]
    text, tops = told(first, second)
    assert len(tops) == 2 * len(kinds)
    assert [text.count(f" {kind} ") for kind in kinds] == [1] * len(kinds)
    assert text.count("    and in dp · other  ") == len(kinds)
    head = text.splitlines()[tops[0]]
    folded = text.splitlines()[tops[1]]
    assert "dp · demo" in head
    assert folded.startswith("    and in dp · other  ")


def test_what_is_chosen_of_these_is_told_in_full():
    first, second = dp_run(), other(dp_run(), "two", title="other")
    kind = first.run.diagnoses[0].kind.replace("_", " ")
    text, tops = told(first, second, cursor=1)
    assert text.count(f" {kind} ") == 2
    assert text.splitlines()[tops[1]].startswith("▸ ")


def test_findings_of_one_run_are_all_told_in_full():
    text, tops = told(with_alerts(past(), past(ended_s=1030.0), diagnoses=[]))
    assert len(tops) == 2
    assert text.count("✓ straggler  was warning") == 2


def test_live_runs_come_before_those_that_have_ended():
    over = other(dp_run(state="finished"), "two", title="newer")
    text, _ = told(over, dp_run(), cursor=0)
    assert text.index("dp · demo") < text.index("When their run ended") < text.index("dp · newer")


def test_runs_of_one_strategy_are_told_apart_by_their_time():
    first, second = other(dp_run(), "one", began_s=3601.0), other(dp_run(), "two", began_s=3602.0)
    assert strategy_names([first, second]) == {"one": "dp 01:00:01", "two": "dp 01:00:02"}
    assert strategy_names([first]) == {"one": "dp"}
