"""The stacks of all threads: correct, bounded, and without disturbing them."""

from __future__ import annotations

import gc
import inspect
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from dpwatch.probe.stack import all_threads as stacks
from dpwatch.probe.stack.all_threads import INNERMOST, MOST_THREADS, OUTERMOST, stacks_of
from dpwatch.wire import codec
from dpwatch.wire.messages import Asked, Batch, Stacks

from .test_probe import train

HERE = "tests/probe/test_stacks.py"


@contextmanager
def waiting(count: int = 1, depth: int = 0) -> Iterator[list[threading.Thread]]:
    """Threads that wait at a known line, at a given depth of calls."""
    go_on, entered = threading.Event(), threading.Semaphore(0)

    def down(levels: int) -> None:
        if levels:
            down(levels - 1)
        else:
            wait_here(entered, go_on)

    threads = [threading.Thread(target=down, args=(depth,), name=f"w{n}") for n in range(count)]
    for thread in threads:
        thread.start()
    for _ in threads:
        entered.acquire()
    try:
        yield threads
    finally:
        go_on.set()
        for thread in threads:
            thread.join()


def wait_here(entered: threading.Semaphore, go_on: threading.Event) -> None:
    entered.release()
    go_on.wait()


LINE = inspect.getsourcelines(wait_here)[1] + 2


def test_a_waiting_thread_is_reported_and_the_caller_is_not():
    with waiting() as (thread,):
        threading.Event().wait(0.01)  # it may still be between the two lines
        while True:
            told = stacks_of(thread.ident, 7)
            first = told.threads[0]
            if f"{HERE}:{LINE} wait_here" in first.frames:
                break
    assert (told.asked, told.left_out) == (7, 0)
    assert (first.name, first.training, first.tid) == ("w0", True, thread.native_id)
    assert first.frames[first.theirs] == f"{HERE}:{LINE} wait_here"
    assert first.frames[0].endswith("_bootstrap")  # outermost first
    assert first.frames[-1].startswith("python3") or "threading.py" in first.frames[-1]
    assert all(t.name != "MainThread" for t in told.threads)  # which is the one that asks


def test_the_main_threads_tid_is_the_pid():
    found: list[Stacks] = []
    asking = threading.Thread(target=lambda: found.append(stacks_of(ident, 1)))
    ident = threading.get_ident()
    asking.start()
    asking.join()
    first = found[0].threads[0]
    assert (first.name, first.training, first.tid) == ("MainThread", True, os.getpid())
    assert any(frame.startswith(HERE) for frame in first.frames)


def test_deep_stacks_keep_both_ends_and_count_the_rest():
    with waiting(depth=200) as (thread,):
        frames = stacks_of(thread.ident, 1).threads[0].frames
    assert len(frames) == OUTERMOST + 1 + INNERMOST
    assert frames[0].endswith("_bootstrap")
    (index,) = [i for i, frame in enumerate(frames) if frame.startswith("…")]
    assert index == OUTERMOST
    left_out = int(frames[index].split()[1])
    deep = sum(frame.endswith(" down") for frame in frames) + left_out
    assert deep == 201
    assert any(frame.endswith(" wait_here") for frame in frames[index:])


def test_the_depth_of_a_stack_walk_is_bounded(monkeypatch):
    monkeypatch.setattr(stacks, "FARTHEST", 50)
    with waiting(depth=200) as (thread,):
        frames = stacks_of(thread.ident, 1).threads[0].frames
    assert frames[0] == "… more than 50 frames"
    assert len(frames) == 1 + OUTERMOST + 1 + INNERMOST
    assert not any(frame.endswith("_bootstrap") for frame in frames)


def test_the_number_of_threads_is_bounded_and_the_training_one_comes_first():
    with waiting(count=MOST_THREADS + 8) as threads:
        told = stacks_of(threads[-1].ident, 1)
    assert len(told.threads) == MOST_THREADS
    assert told.left_out >= 8  # and threads of C++ that run Python just now
    assert [t.training for t in told.threads] == [True] + [False] * (MOST_THREADS - 1)
    assert told.threads[0].name == f"w{MOST_THREADS + 7}"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/a/" + "long/" * 40 + "file.py", "/long/long/file.py"),
        ("x" * 500 + ".py", "xxx.py"),
        ("/odd/\udcff\x1b[31m.py", "odd/?\x1b[31m.py"),  # viewers clean what a terminal heeds
    ],
)
def test_any_file_name_is_short_and_encodable(monkeypatch, path, shown):
    monkeypatch.setattr(stacks, "place", lambda code: (path.lstrip("/"), True))
    with waiting() as (thread,):
        told = stacks_of(thread.ident, 1)
    for frame in told.threads[0].frames:
        file = frame.rpartition(" ")[0].rpartition(":")[0]
        assert file.endswith(shown)
        assert len(file) <= stacks.PATH_CHARS
    codec.encode(Batch(2, "r", 0, "h", 1, 0, 0, 0, 0, [told]))


def test_nothing_of_the_users_is_kept_alive():
    class Big:
        pass

    gone: list[weakref.ref[Big]] = []

    def holds() -> None:
        big = Big()
        gone.append(weakref.ref(big))
        asking = threading.Thread(target=stacks_of, args=(threading.get_ident(), 1))
        asking.start()
        asking.join()

    holds()
    gc.collect()
    assert gone[0]() is None


def test_training_is_bit_identical_while_stacks_are_taken(make_probe):
    without, parameters = train(6)
    probe = make_probe()
    asked, source = 0, probe._publisher._source

    def asking() -> None:  # as the sender does it, and far more often
        nonlocal asked
        while not over.is_set() or asked < 20:
            asked += 1
            assert source.stacks(asked) is not None

    over = threading.Event()
    sender = threading.Thread(target=asking)
    sender.start()
    watched, watched_parameters = train(6)
    over.set()
    sender.join()
    probe.close()
    assert asked >= 20
    assert watched == without
    assert all(torch.equal(a, b) for a, b in zip(parameters, watched_parameters, strict=True))


def test_the_sender_answers_with_the_training_thread(make_probe, bare, link):
    probe = make_probe()
    answered = threading.Event()
    send = link.send

    def listening(frame: bytes) -> bool:
        taken = send(frame)
        if link.records(Stacks):
            answered.set()
        return taken

    link.send = listening
    link.request = Asked(5, [0])
    probe.step()  # it has a rank from now on
    assert answered.wait(60)
    (told,) = link.records(Stacks)
    assert told.asked == 5
    assert told.threads[0].training
    assert any(HERE in frame for frame in told.threads[0].frames)
    assert all(t.name != "dpwatch-sender" for t in told.threads)


def test_a_stack_error_costs_only_the_answer(make_probe, bare, monkeypatch):
    probe = make_probe()

    def broken(*_: object) -> None:
        raise RuntimeError("no frames here")

    monkeypatch.setattr("dpwatch.probe.probe.stacks_of", broken)
    assert probe._publisher._source.stacks(1) is None
    assert not probe.over
