"""What a run over several hosts shows of them: clocks, silence, what is not joined."""

from msgspec.structs import replace

from dpwatch.cli.output import table
from dpwatch.run.model.snapshot import HostView, Snapshot
from dpwatch.tui.draw.palette import palette
from dpwatch.tui.snapshots.frame import Frame
from dpwatch.tui.views.rank_detail import rank_lines
from dpwatch.tui.views.timeline.widget import alignment
from dpwatch.tui.widgets.header import session_line
from tests.tui.scenes import dp_run

AWAY = HostView("node\x1b[2J1", 12.4, -5_000_000.028, 0.438, "exchange", 1)
NOTE = "ranks on other hosts are not shown: create keys with dpwatch keys"


def over_hosts(*hosts, note=""):
    view = dp_run()
    ranks = [replace(row, host=AWAY.host, missed_frames=3) for row in view.run.ranks]
    return replace(view, run=replace(view.run, ranks=ranks, other_hosts=list(hosts), note=note))


def text(lines):
    return "\n".join(each.plain for each in lines)


def test_a_rank_shows_its_hosts_clock_with_its_error():
    shown = text(rank_lines(over_hosts(AWAY), 0, 120, palette(dark=True)))
    assert "against the head's: -5000.000028 s ± 0.438 ms by exchange" in shown
    assert "no report for 12 s" in shown
    assert "3 frames missed" in shown
    assert "\x1b" not in shown


def test_nothing_of_clocks_on_one_host():
    assert "clock" not in text(rank_lines(dp_run(), 0, 120, palette(dark=True)))[:200]


def test_the_timeline_says_how_well_hosts_are_aligned():
    near = replace(AWAY, clock_error_ms=0.12)
    assert alignment(over_hosts(near, AWAY).run) == "hosts' clocks within 0.438 ms"
    unknown = replace(AWAY, clock_error_ms=None)
    assert alignment(over_hosts(near, unknown).run) == "hosts aligned at the end of a step"


def test_what_is_not_joined_is_a_line_on_top():
    view = over_hosts(note=NOTE)
    frame = Frame(snapshot=Snapshot((view,), 0.0), run_id=view.run.run_id)
    assert NOTE in session_line(frame, 100, palette(dark=True)).plain
    other = Frame(snapshot=Snapshot((view,), 0.0, "ssh: node9 is down"), run_id=view.run.run_id)
    assert "node9" in session_line(other, 100, palette(dark=True)).plain


def test_the_text_has_clocks_and_the_note_too():
    told = table([over_hosts(AWAY, note=NOTE).run])
    assert "clock -5000000.03 ms from the head's, ±0.44 ms by exchange" in told
    assert "no report for 12 s" in told
    assert NOTE in told
    assert "\x1b" not in told
