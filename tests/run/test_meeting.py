"""`hang` before the first collective: which ranks have joined a process group's creation."""

import msgspec
import pytest

from dpwatch.run.derive.summarize import summarize
from dpwatch.run.diagnose import hang
from dpwatch.run.state.apply import apply
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import HUB_RANK, Beat, Bye, Joined, Meeting, Tick
from tests.frames import START_NS, batch, hello

SECOND = 1_000_000_000
HERE = "train.py:18 <module>"
TIMED_OUT = Bye(
    "failed", "DistStoreError: wait timeout after 30000ms, keys: /default_pg/0//cpu//0/2"
)


def world(size=3, launched=None):
    return Meeting("init_process_group", size, launched=launched)


def standing(meetings, *, still_s=13.0, others=(), ended=None, records=()):
    """Ranks that wait in the creation of a group; `others` are present and busy."""
    state = RunState("run")
    now = START_NS + 20 * SECOND
    for r, meeting in meetings.items():
        told = hello(meeting.ranks)
        beat = Beat(0, "", None, None, HERE, int(still_s * SECOND), meeting=meeting)
        apply(state, batch(told, beat, rank=r, now_ns=now))
    for r in others:
        beat = Beat(0, "", None, None, "data.py:7 index", 0)
        told = hello(3)
        apply(state, batch(_without_backend(told), beat, rank=r, now_ns=now))
    for r, bye in (ended or {}).items():
        apply(state, batch(bye, rank=r, now_ns=now))
    apply(state, batch(*records, Tick(), rank=HUB_RANK, now_ns=now))
    return state


def _without_backend(told):
    return msgspec.structs.replace(told, backend="")


def finding(state):
    return hang.rule(summarize(state), state)


def test_a_rank_that_never_reported_is_named():
    state = standing({0: world(launched=2), 1: world(launched=2)})
    found = finding(state)
    assert (found.kind, found.severity, found.ranks) == ("hang", "critical", [2])
    assert {k: found.evidence[k] for k in ("pattern", "missing", "entered", "launched")} == {
        "pattern": "meeting", "missing": [2], "entered": [0, 1], "launched": 2,
    }  # fmt: skip
    assert found.text.startswith(
        f"Rank 2 has not reached init_process_group at {HERE}; ranks 0-1 have waited there for "
        "13 s (2 of 3 ranks are there). Rank 2 has not reported. The script asks for 3 ranks, the "
        "launcher has started 2"
    )
    assert summarize(state).world_size == 3


@pytest.mark.parametrize(
    ("still_s", "severity"), [(10, None), (13, "info"), (40, "warning"), (70, "critical")]
)
def test_severity_rises_once_ranks_should_have_started(still_s, severity):
    found = finding(standing({0: world(), 1: world()}, still_s=still_s))
    assert (found and found.severity) == severity


def test_a_present_rank_that_has_not_joined_is_reported_busy():
    found = finding(standing({0: world(), 1: world()}, others=[2]))
    assert found.ranks == [2]
    assert "Rank 2 (pid 1002) is busy at data.py:7 index." in found.text


def test_ranks_that_disagree_about_the_world_size_are_reported():
    found = finding(standing({0: world(3), 1: world(2)}))
    assert found.severity == "critical"
    assert "rank 1 2, rank 0 3" in found.text


def test_a_group_that_all_joined_and_none_left_is_a_hang():
    found = finding(standing({r: world() for r in range(3)}))
    assert (found.ranks, found.severity) == ([0, 1, 2], "info")
    assert "check the network between them" in found.text


def test_the_hang_is_the_reason_once_ranks_gave_up():
    state = standing({0: world(), 1: world()}, still_s=0.3, ended={0: TIMED_OUT, 1: TIMED_OUT})
    found = finding(state)
    assert (found.ranks, found.severity) == ([2], "critical")


def test_a_rank_that_died_before_it_joined_is_lost():
    died = Bye("failed", "ImportError: no module named data")
    assert finding(standing({0: world(), 1: world()}, others=[2], ended={2: died})) is None


def test_only_the_head_reports_missing_ranks_of_other_hosts():
    there = {0: world(), 1: world()}
    assert finding(standing(there, records=[Joined("node", "head")])) is None
    assert finding(standing(there, records=[Joined("head", "head")])).ranks == [2]


def test_a_group_of_some_ranks_names_its_missing_member():
    part = Meeting("new_group", 2, "1", [0, 2])
    found = finding(standing({0: part}, others=[1, 2]))
    assert found.ranks == [2]
    assert found.text.startswith(f"Rank 2 has not reached new_group at {HERE}; rank 0 has waited")
