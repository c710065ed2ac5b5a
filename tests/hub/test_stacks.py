"""Stacks on demand, the hub's part: requests, what is kept and what is shown."""

import os
import signal
import subprocess
import sys

import msgspec
import pytest

from dpwatch.hub.stack_requests import EVERY_S, StackRequests
from dpwatch.run.derive.stack_text import run_text
from dpwatch.run.derive.stacks import stack_views
from dpwatch.run.derive.summarize import view
from dpwatch.run.model.ranks import name_ranks
from dpwatch.run.model.stacks import groups
from dpwatch.run.state import stacks
from dpwatch.run.state.apply import apply
from dpwatch.run.state.run_state import RunState
from dpwatch.runtime.stack_request import RequestFile, encode_request
from dpwatch.wire.messages import HUB_RANK, Asked, Beat, Bye, Stacks, ThreadStack, Unanswered
from tests.frames import MS, START_NS, batch, hello
from tests.hubs import rank as a_rank
from tests.hubs import serving, until, watching

SECOND = 1000 * MS


def trains(*frames, theirs=0):
    return ThreadStack("MainThread", True, 7, list(frames), theirs)


def other(name="worker"):
    return ThreadStack(name, False, 8, ["pool.py:3 wait"])


def a_run(world=4):
    state = RunState("run")
    for r in range(world):
        apply(state, batch(hello(world), Beat(3, "", where=f"train.py:{r} main"), rank=r))
    return state


def said(state, record, after_s=0.0):
    apply(state, batch(record, rank=HUB_RANK, now_ns=START_NS + int(after_s * SECOND)))


def answer(state, r, *threads, asked=1, after_s=0.5):
    now = START_NS + int(after_s * SECOND)
    apply(state, batch(Stacks(asked, now, list(threads)), rank=r, now_ns=now))


def test_no_stacks_are_shown_before_a_request():
    assert view(a_run()).stacks == ()


def test_an_answer_is_shown_with_its_age():
    state = a_run()
    said(state, Asked(1, [0, 2]))
    answer(state, 2, trains("a.py:1 main", "b.py:2 f"), other(), after_s=0.5)
    said(state, Beat(0, ""), after_s=2.5)
    by_rank = {entry.rank: entry for entry in stack_views(state)}
    assert [by_rank[r].standing for r in range(4)] == ["awaited", "unasked", "answered", "unasked"]
    assert by_rank[2].age_s == 2.0
    assert [t.name for t in by_rank[2].threads] == ["MainThread", "worker"]
    assert (by_rank[0].waited_s, by_rank[0].age_s) == (2.5, None)


@pytest.mark.parametrize(
    ("process", "words"),
    [
        ("T", "stopped (SIGSTOP"),
        ("t", "debugger"),
        ("D", "in the kernel"),
        ("S", "native code holds the GIL"),
        ("R", "native code holds the GIL"),
        ("", "it is stopped, or native code holds the GIL"),
        ("?", "it is stopped, or native code holds the GIL"),
    ],
)
def test_a_rank_that_does_not_answer_is_shown_with_the_reason(process, words):
    state = a_run()
    said(state, Asked(1))
    said(state, Unanswered(1, 1001, process), after_s=4)
    entry = stack_views(state)[1]
    assert (entry.standing, entry.waited_s) == ("silent", 4.0)
    assert entry.why.startswith("no answer for 4 s: ")
    assert words in entry.why
    assert (entry.seen_at, entry.seen_s) == ("train.py:1 main", 4.0)
    answer(state, 1, trains("a.py:1 main"), after_s=5)
    assert (stack_views(state)[1].standing, stack_views(state)[1].why) == ("answered", "")


def test_repeated_requests_do_not_restart_the_wait():
    state = a_run()
    said(state, Asked(1), after_s=0)
    said(state, Asked(2), after_s=3)
    said(state, Unanswered(0, 1000, "S"), after_s=5)
    assert stack_views(state)[0].waited_s == 5.0
    answer(state, 0, trains("a.py:1 main"), asked=1, after_s=6)  # to the first of both
    assert stack_views(state)[0].standing == "silent"
    answer(state, 0, trains("a.py:1 main"), asked=2, after_s=7)
    assert stack_views(state)[0].standing == "answered"


def test_an_answer_to_a_killed_hub_does_not_answer_its_successor():
    state = a_run(1)
    answer(state, 0, trains("a.py:1 main"), asked=7)
    said(state, Asked(1), after_s=1)
    assert stack_views(state)[0].standing == "awaited"


def test_a_report_on_another_process_is_ignored():
    state = a_run()
    said(state, Asked(1))
    said(state, Unanswered(0, 99, "T"), after_s=4)
    said(state, Unanswered(17, 99, "T"), after_s=4)
    assert stack_views(state)[0].standing == "awaited"


def test_an_ended_rank_is_not_asked_and_shown_as_ended():
    state = a_run(1)
    apply(state, batch(Bye("failed", "x")))
    said(state, Asked(1))
    assert view(state).stacks == ()
    state = a_run(1)
    said(state, Asked(1))
    apply(state, batch(Bye("failed", "x")))
    assert (stack_views(state)[0].standing, stack_views(state)[0].why) == (
        "ended",
        "its process has ended (failed)",
    )


def test_all_ranks_together_stay_within_the_budget(monkeypatch):
    monkeypatch.setattr(stacks, "BUDGET_CHARS", 5 * stacks.LEAST_CHARS)
    wide = [trains(*["x" * 200] * 50), *(other("t" * 200) for _ in range(100))]
    wide[1:] = [msgspec.structs.replace(t, frames=["y" * 200] * 50) for t in wide[1:]]
    state = a_run(4)
    for r in range(4):
        answer(state, r, *wide)
    for entry in seen_all(state):
        size = sum(len(t.name) + sum(map(len, t.frames)) for t in entry.threads)
        assert size <= max(stacks.LEAST_CHARS, 5 * stacks.LEAST_CHARS // 4)
        assert entry.threads[0].training
        assert len(entry.threads[0].frames) == stacks.MOST_FRAMES
        assert len(entry.threads) + entry.left_out == 101


def seen_all(state):
    said(state, Asked(9))
    return stack_views(state)


def test_ranks_with_equal_stacks_are_grouped():
    state = a_run(6)
    said(state, Asked(1, [0, 1, 2, 3, 4]))
    for r in (0, 1, 3):
        answer(state, r, trains("a.py:1 main", "dist.py:9 all_reduce"), other(f"only in {r}"))
    answer(state, 2, trains("a.py:1 main", "loop.py:4 spin", theirs=1))
    said(state, Unanswered(4, 1004, "T"), after_s=1)
    found = groups(stack_views(state))
    assert [(g.ranks, g.at) for g in found] == [
        ((0, 1, 3), "a.py:1 main"),
        ((2,), "loop.py:4 spin"),
        ((4,), ""),
        ((5,), ""),
    ]
    assert found[0].frames == ("a.py:1 main", "dist.py:9 all_reduce")


def test_a_rank_whose_training_thread_has_ended_is_shown_so():
    state = a_run(1)
    said(state, Asked(1))
    answer(state, 0, other())
    (group,) = groups(stack_views(state))
    assert (group.frames, group.at) == ((), "")
    assert "rank 0: its training thread has ended" in run_text(view(state))


def test_silent_ranks_are_grouped_however_long_each_is_silent():
    state = a_run(3)
    said(state, Asked(1, [0]), after_s=0)
    said(state, Asked(2, [1, 2]), after_s=2)
    for r, process in ((0, "T"), (1, "T"), (2, "S")):
        said(state, Unanswered(r, 1000 + r, process), after_s=9)
    assert [g.ranks for g in groups(stack_views(state))] == [(0, 1), (2,)]


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([7], "rank 7"),
        ([1, 0], "ranks 0-1"),
        ([0, 1, 2, 5, 7, 8], "ranks 0-2, 5, 7-8"),
        (range(0, 40, 2), "ranks 0, 2, 4, 6, 8, 10, 12, 14 and 12 more"),
    ],
)
def test_ranks_are_named_in_short(ranks, text):
    assert name_ranks(ranks) == text


def test_text_has_groups_or_each_thread_and_no_escapes():
    state = a_run(3)
    said(state, Asked(1))
    for r in (0, 1):
        answer(state, r, trains("a.py:1 main", "\x1b[2Jb.py:2 f", theirs=1), other("w\n\x07"))
    said(state, Unanswered(2, 1002, "T"), after_s=2)
    text = run_text(view(state))
    assert "ranks 0-1 (2 of 3): at �[2Jb.py:2 f, taken 2 s ago" in text
    assert text.index("> �[2Jb.py:2 f") < text.index("  a.py:1 main")
    assert "rank 2: no answer for 2 s: its process is stopped" in text
    assert "last seen at train.py:2 main, 2 s ago" in text
    assert "worker" not in text
    text = run_text(view(state), [1])
    assert "MainThread (trains) · tid 7" in text
    assert "w��" in text
    assert "rank 2" not in text
    assert not any(ord(c) < 32 and c != "\n" for c in text)


# -- requests -----------------------------------------------------------------------------------


@pytest.fixture
def requests(tmp_path):
    return StackRequests(tmp_path / "ask-stacks", "here")


def wants(requests, *ranks):
    assert requests.add(encode_request(list(ranks)))


def test_ranks_are_asked_once_a_second_with_combined_requests(requests, tmp_path):
    state, looks = a_run(), RequestFile(tmp_path / "ask-stacks")
    wants(requests, 1)
    assert requests.ask(state, 10.0) == looks.changed() == Asked(1, [1])
    said(state, Asked(1, [1]))
    answer(state, 1, trains("a.py:1 main"))
    for r in (0, 3, 0, 99):
        wants(requests, r)
        assert requests.ask(state, 10.0 + EVERY_S / 2) is None
    assert looks.changed() is None
    assert requests.ask(state, 10.0 + EVERY_S) == looks.changed() == Asked(2, [0, 3])
    assert requests.ask(state, 99.0) is None


def test_ranks_without_an_answer_are_asked_again_unless_dead(requests):
    state = a_run()
    said(state, Asked(1, [1]))
    apply(state, batch(Bye("finished"), rank=3))
    wants(requests, 2, 3)
    assert requests.ask(state, 10.0) == Asked(1, [1, 2])
    wants(requests)
    assert requests.ask(state, 20.0) == Asked(2, [0, 1, 2])


def test_no_request_is_written_without_living_ranks(requests, tmp_path):
    state = a_run(1)
    apply(state, batch(Bye("finished")))
    wants(requests)
    assert requests.ask(state, 10.0) is None
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_request_is_refused(requests):
    assert not requests.add(b"\x93garbage")
    assert requests.ask(a_run(), 10.0) is None


def test_a_stopped_process_is_found_at_once_others_after_three_seconds(requests):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        state = RunState("run")
        apply(state, batch(hello(2), rank=0, pid=child.pid))
        apply(state, batch(hello(2), rank=1, pid=child.pid, host="elsewhere"))
        said(state, Asked(1))
        assert list(requests.unanswered(state, START_NS + SECOND)) == []
        late = {u.rank: u.process for u in requests.unanswered(state, START_NS + 3 * SECOND)}
        assert late.keys() == {0, 1}
        assert late[0] in ("S", "R", "D")
        assert late[1] == ""  # whose state nobody here can tell
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        (found,) = requests.unanswered(state, START_NS + SECOND)
        assert found == Unanswered(0, child.pid, "T")
        said(state, found, after_s=1)
        assert list(requests.unanswered(state, START_NS + 2 * SECOND)) == []  # said once
    finally:
        os.kill(child.pid, signal.SIGCONT)
        child.communicate(b"\n")


def test_viewers_request_stacks_and_later_ones_see_the_answer():
    with serving() as hub, a_rank(hub.place) as send, watching() as watcher:
        looks = RequestFile(hub.place.stacks_file)
        send(batch(hello(2), rank=0))
        send(batch(hello(2), rank=1))
        until(watcher, lambda s: s.runs and len(s.runs[0].run.ranks) == 2)
        (follower,) = watcher._followers.values()
        for garbage in ([b"stacks"], [b"stacks", b"\xff"], [b"", b"", b""], [b"stacks", b"", b""],
                        [b"unheard-of", b"x"]):  # fmt: skip
            follower.answers.send_multipart(garbage)
        watcher.ask_stacks("run", [1])
        watcher.ask_stacks("another", [0])
        until(watcher, lambda s: [e.standing for e in s.runs[0].stacks] == ["unasked", "awaited"])
        assert looks.changed() == Asked(1, [1])
        assert hub.place.stacks_file.stat().st_mode & 0o777 == 0o600
        send(batch(Stacks(1, START_NS, [trains("a.py:1 main")]), rank=1, seq=1))
        until(watcher, answered)
        with watching() as late:
            shown = until(late, answered)
    assert shown.runs[0].stacks[1].threads == (trains("a.py:1 main"),)
    assert not hub.place.path.exists()


def answered(snapshot):
    return bool(snapshot.runs) and any(e.standing == "answered" for e in snapshot.runs[0].stacks)


def test_a_request_that_cannot_be_written_is_dropped(monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("dpwatch.hub.stack_requests.write_request", full)
    with serving() as hub, a_rank(hub.place) as send, watching() as watcher:
        send(batch(hello()))
        until(watcher, lambda s: s.runs)
        watcher.ask_stacks("run")
        send(batch(Bye("finished"), seq=1))
        shown = until(watcher, lambda s: s.runs[0].run.state == "finished")
    assert shown.runs[0].stacks == ()
