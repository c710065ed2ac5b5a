"""Lines made from writes to a stream: complete, clean, and limited in number."""

from __future__ import annotations

import pytest

from dpwatch.probe.output.lines import BURST, KEPT_CHARS, MOST_CHARS, OPEN_NS, RATE, Lines, cleaned
from dpwatch.wire.messages import Line, Output

S = 1_000_000_000


def texts(output: Output | None) -> list[str]:
    return [] if output is None else [line.text for line in output.lines]


def told(*writes: str) -> list[str]:
    """Lines sent for these writes, and the open one."""
    lines = Lines("out")
    for n, text in enumerate(writes):
        lines.feed(text, n)
    output = lines.drain(10 * S, last=True)
    if output is None:
        return []
    return [*texts(output), *([f"{output.open.text}…"] if output.open else [])]


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        (["a\n"], ["a"]),
        (["a", "\n"], ["a"]),
        (["a\nb\nc"], ["a", "b", "c…"]),
        (["a\r\nb\r\n"], ["a", "b"]),
        (["a\r", "\nb\n"], ["a", "b"]),
        (["\n\n"], ["", ""]),
        (["10%\r", "20%\r", "30%\n"], ["30%"]),
        (["\r10%", "\r20%", "\r30%", "\n"], ["30%"]),
        (["\r10%", "\r20%"], ["20%…"]),
        (["head 10%", "\rhead", " 20%\n"], ["head 20%"]),
        (["\r99%", "\r   \r"], []),
        (["\r99%", "\r   \r", "done\n"], ["done"]),
        (["  indented\n"], ["  indented"]),
        (["\tx\n"], ["    x"]),
        ([""], []),
    ],
)
def test_writes_become_lines(writes, expected):
    assert told(*writes) == expected


def test_a_line_has_the_time_of_its_last_write():
    lines = Lines("err")
    lines.feed("a", 1 * S)
    lines.feed("b\nc", 2 * S)
    assert lines.drain(9 * S) == Output("err", [Line(2 * S, "ab")], 0, Line(2 * S, "c"))


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mred", "red"),
        ("\x1b(Bplain", "plain"),
        ("cut off \x1b[3", "cut off"),
        ("cut off \x1b]0;tit", "cut off"),
        ("bell\x07 null\x00", "bell null"),
        ("a\ud800b", "a\ufffdb"),
        ("12%\b\b\b34%", "34%"),
        ("\b\bx", "x"),
        ("été 漢字 █", "été 漢字 █"),
    ],
)
def test_only_printable_text_is_sent(raw, clean):
    assert cleaned(raw) == clean
    cleaned(raw).encode()  # so that it can be sent


def test_a_huge_line_is_truncated_at_bounded_cost():
    lines = Lines("out")
    for _ in range(1000):
        lines.feed("x" * 8000, 0)
    assert len(lines._part) == KEPT_CHARS
    lines.feed("\nnext\n", 0)
    long, after = texts(lines.drain(0))
    assert (len(long), long[-1], after) == (MOST_CHARS, "…", "next")


def test_an_overwritten_long_line_shows_its_final_state():
    assert told("x" * 10_000, "\rshort\n") == ["short"]


def test_of_too_many_lines_the_last_are_sent_and_the_others_counted():
    lines = Lines("out")
    lines.feed("".join(f"{n}\n" for n in range(1000)), 0)
    output = lines.drain(0)
    assert texts(output) == [str(n) for n in range(1000 - BURST, 1000)]
    assert output.left_out == 1000 - BURST
    lines.feed("".join(f"{n}\n" for n in range(100)), 0)
    output = lines.drain(S // 2)  # half a second's worth
    assert texts(output) == [str(n) for n in range(100 - RATE // 2, 100)]
    assert output.left_out == 100 - RATE // 2


def test_a_ranks_last_lines_are_always_sent():
    lines = Lines("err")
    lines.feed("x\n" * BURST, 0)
    lines.drain(0)
    lines.feed("".join(f"frame {n}\n" for n in range(30)), 0)
    assert len(texts(lines.drain(0, last=True))) == 30


def test_lines_within_the_rate_are_all_sent():
    lines = Lines("out")
    seen = []
    for turn in range(40):  # ten seconds at 40 lines a second
        lines.feed("x\n" * 10, turn)
        output = lines.drain(turn * S // 4)
        seen += texts(output)
        assert output.left_out == 0
    assert len(seen) == 400


def test_lines_lost_before_are_counted():
    lines = Lines("out")
    lines.feed("end\n", 0, cut=7)
    assert lines.drain(0) == Output("out", [Line(0, "end")], 7)
    assert lines.drain(S) is None


def test_an_open_line_is_sent_at_intervals_until_it_ends():
    lines = Lines("err")
    lines.feed("\r 1%", 1)
    assert lines.drain(S).open == Line(1, " 1%")
    lines.feed("\r 2%", 2)
    assert lines.drain(S + OPEN_NS // 2) is None
    assert lines.drain(S + OPEN_NS).open == Line(2, " 2%")
    assert lines.drain(S + 2 * OPEN_NS) is None  # nothing new
    lines.feed("\r100%\n", 3)
    assert lines.drain(S + 2 * OPEN_NS) == Output("err", [Line(3, "100%")])
    assert lines.drain(9 * S) is None


def test_an_erased_open_line_is_cleared():
    lines = Lines("err")
    lines.feed("\r50%", 1)
    lines.drain(S)
    lines.feed("\r   \r", 2)
    assert lines.drain(2 * S) == Output("err", [])
