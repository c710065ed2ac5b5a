"""The tap on stdout and stderr: output is unchanged, and captured."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import subprocess
import sys
import threading

import pytest

from dpwatch.probe.output import capture as output
from dpwatch.probe.output.capture import MOST_CHARS, MOST_WRITES, Tap
from dpwatch.wire.messages import Bye, Hello, Output


@pytest.fixture
def fresh(monkeypatch):
    """A stdout and a stderr as Python creates them, in memory; not pytest's own."""

    def make():
        made = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in "oe"]
        monkeypatch.setattr(sys, "stdout", made[0])
        monkeypatch.setattr(sys, "stderr", made[1])
        return made

    return make


@pytest.fixture
def tapped(fresh):
    """Such streams with a tap on them."""
    taps = []

    def make():
        streams = fresh()
        taps.append(Tap())
        return streams, taps[-1]

    yield make
    for tap in taps:
        tap.close()


def texts(records, stream="out"):
    return [line.text for each in records if each.stream == stream for line in each.lines]


def print_much():
    print("one", 2, None, sep="-", end="!\n")
    print("flushed", flush=True)
    print("é 漢字", file=sys.stderr)
    sys.stdout.writelines(["a\n", "b\n"])
    logger = logging.getLogger("much")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.propagate = False
    logger.warning("a warning")
    logger.handlers.clear()
    return sys.stdout.write("12345\n")


def test_the_bytes_written_are_the_same(fresh):
    streams = fresh()
    returned = print_much()
    plain = [stream.buffer.getvalue() for stream in streams]
    tap = Tap()
    assert print_much() == returned == 6
    both = [stream.buffer.getvalue() for stream in streams]
    assert both == [written * 2 for written in plain]
    tap.close()
    print_much()
    assert [stream.buffer.getvalue() for stream in streams] == [w * 3 for w in plain]
    told = tap.drain(last=True)
    assert texts(told) == ["one-2-None!", "flushed", "a", "b", "12345"]
    assert texts(told, "err") == ["é 漢字", "a warning"]


def test_the_stream_objects_are_unchanged(fresh):
    streams = fresh()
    before = [(vars(s).copy(), type(s), s.fileno if hasattr(s, "fileno") else 0) for s in streams]
    tap = Tap()
    assert sys.stdout is streams[0]
    assert sys.stderr is streams[1]
    assert type(sys.stdout) is io.TextIOWrapper
    assert not sys.stdout.isatty()
    with pytest.raises(io.UnsupportedOperation):
        sys.stdout.fileno()
    tap.close()
    after = [(vars(s).copy(), type(s), s.fileno if hasattr(s, "fileno") else 0) for s in streams]
    assert after == before


def test_write_errors_propagate_unchanged(tapped):
    streams, tap = tapped()
    with pytest.raises(TypeError, match="must be str, not int"):
        sys.stdout.write(7)
    with pytest.raises(TypeError):
        sys.stdout.write()
    with pytest.raises(UnicodeEncodeError):
        print("\ud800")
    streams[0].close()
    with pytest.raises(ValueError, match="closed file"):
        print("too late")
    assert tap.drain(last=True) == []


def test_a_broken_pipe_is_the_scripts_own(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with contextlib.suppress(BrokenPipeError), open(write, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        tap = Tap()
        with pytest.raises(BrokenPipeError) as caught:
            print("nobody reads this")
        assert caught.value.errno == errno.EPIPE
        tap.close()


def test_prints_of_many_threads_stay_whole(tapped):
    streams, tap = tapped()

    def work(thread):
        for n in range(40):
            sys.stdout.write(f"thread {thread} line {n}\n")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    expected = sorted(f"thread {t} line {n}" for t in range(4) for n in range(40))
    assert sorted(streams[0].buffer.getvalue().decode().splitlines()) == expected
    assert sorted(texts(tap.drain(last=True))) == expected


def test_patches_on_top_of_ours_stay(tapped):
    streams, tap = tapped()
    ours = sys.stdout.write

    def theirs(text):
        return ours(text)

    sys.stdout.write = theirs
    tap.close()
    assert sys.stdout.write is theirs
    print("goes on")
    assert streams[0].buffer.getvalue() == b"goes on\n"


def test_an_existing_instance_write_is_restored(fresh):
    fresh()
    seen = []
    sys.stdout.write = seen.append
    before = sys.stdout.write
    tap = Tap()
    print("x")
    tap.close()
    print("y")
    assert sys.stdout.write is before
    assert "".join(seen) == "x\ny\n"
    assert texts(tap.drain(last=True)) == ["x"]


@pytest.mark.parametrize("odd", [None, object(), io.StringIO()])
def test_unusual_streams_do_no_harm(monkeypatch, odd):
    monkeypatch.setattr(sys, "stdout", odd)
    monkeypatch.setattr(sys, "stderr", odd)
    tap = Tap()
    tap.drain(last=True)
    tap.close()


def test_undrained_output_is_bounded(tapped):
    _, tap = tapped()
    for n in range(3 * MOST_WRITES):
        sys.stdout.write(f"{n}\n")
    assert len(tap._written) == MOST_WRITES
    (told,) = tap.drain(last=True)
    assert told.lines[-1].text == str(3 * MOST_WRITES - 1)
    assert told.left_out + len(told.lines) == 3 * MOST_WRITES
    sys.stdout.write("first\n" + "x" * 100_000 + "\nlast\n")
    assert sum(len(text) for _, text, _, _ in tap._written) == MOST_CHARS
    (told,) = tap.drain(last=True)
    assert (told.lines[-1].text, told.left_out) == ("last", 1)


def test_lines_dropped_for_the_other_stream_are_counted(tapped):
    _, tap = tapped()
    print("one\ntwo")
    for n in range(MOST_WRITES):
        sys.stderr.write(f"{n}\n")
    told = {each.stream: each for each in tap.drain(last=True)}
    assert (told["out"].lines, told["out"].left_out) == ([], 2)
    assert len(told["err"].lines) + told["err"].left_out == MOST_WRITES


def test_no_line_is_counted_twice_while_draining(tapped):
    _, tap = tapped()
    told, over = [], threading.Event()

    def take():
        while not over.is_set():
            told.extend(tap.drain())

    sender = threading.Thread(target=take)
    sender.start()
    for n in range(20_000):
        sys.stdout.write(f"{n}\n")
    over.set()
    sender.join()
    told += tap.drain(last=True)
    counted = sum(len(each.lines) + each.left_out for each in told)
    assert counted == 20_000
    assert texts(told)[-1] == "19999"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, False),
        ({"DPWATCH_SESSION": "abc"}, True),
        ({"DPWATCH_SESSION": "abc", "DPWATCH_OUTPUT": "0"}, False),
        ({"DPWATCH_OUTPUT": "1"}, True),
    ],
)
def test_capture_follows_the_environment(monkeypatch, env, expected):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert output.wanted() is expected


def test_a_probe_streams_output_and_restores_the_streams(
    make_probe, bare, link, fresh, monkeypatch
):
    fresh()
    monkeypatch.setenv("DPWATCH_OUTPUT", "1")
    probe = make_probe()
    print("hello")
    probe.close()
    print("after")
    assert link.records(Hello)[-1].tells_output
    assert texts(link.records(Output)) == ["hello"]
    assert isinstance(link.batches[-1].records[-1], Bye)
    assert "write" not in vars(sys.stdout)


def test_a_probe_does_not_patch_the_streams_unless_enabled(make_probe, bare, link, fresh):
    fresh()
    probe = make_probe()
    assert "write" not in vars(sys.stdout)
    print("hello")
    probe.close()
    assert not link.records(Hello)[-1].tells_output
    assert link.records(Output) == []


def test_the_traceback_of_a_with_block_is_sent(make_probe, bare, link, fresh, monkeypatch):
    streams = fresh()
    monkeypatch.setenv("DPWATCH_OUTPUT", "1")
    probe = make_probe()
    print("dying", file=sys.stderr)
    try:
        with probe:
            raise ValueError("of this")
    except ValueError as error:
        sys.__excepthook__(type(error), error, error.__traceback__)
    printed = streams[1].buffer.getvalue().decode().splitlines()
    assert printed[-1] == "ValueError: of this"
    assert texts(link.records(Output), "err") == printed
    assert link.records(Bye) == [Bye("failed", "ValueError: of this")]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(SystemExit("stop"), ["stop"]), (SystemExit(3), []), (KeyError("k"), ["KeyError: 'k'"])],
)
def test_other_endings_are_sent_as_python_prints_them(tapped, error, expected):
    _, tap = tapped()
    tap.record_exception(error)
    assert texts(tap.drain(last=True), "err") == expected


FORKS = """
import os, sys
from dpwatch.probe.output.capture import Tap
tap = Tap()
print("before", flush=True)
pid = os.fork()
if pid == 0:
    tap.close()  # as the probe does in a child
    print("child", flush=True)
    os._exit("write" in vars(sys.stdout))
assert os.waitpid(pid, 0)[1] == 0
print("parent", flush=True)
told = [line.text for each in tap.drain(last=True) for line in each.lines]
assert told == ["before", "parent"], told
raise SystemExit("the end")
"""


def test_with_real_streams_and_a_forked_child():
    ended = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "the end\n")
    assert ended.stdout == "before\nchild\nparent\n"
