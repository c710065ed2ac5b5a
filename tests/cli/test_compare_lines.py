"""What is judged of three runs' output, and what is left alone."""

import pytest

from dpwatch.cli.compare_lines import compare


def steps(*losses, pid="71", end=""):
    return [f"step {n} loss {loss} pid {pid}{end}" for n, loss in enumerate(losses)]


def test_equal_lines_are_the_same_and_their_losses_are_counted():
    lines = ["begins", *steps("0.5", "0.25")]
    told = compare(lines, lines, lines)
    assert (told.lines, told.differences, told.unjudged, told.partly) == (3, [], 0, 0)
    assert told.losses == 6  # step, loss and pid of two lines


def test_one_bit_of_one_loss():
    plain, other = steps("0x1.8p+0", "0x1.4p+0"), steps("0x1.8p+0", "0x1.5p+0")
    told = compare(plain, plain, other)
    assert told.differences == [(plain[1], other[1])]


def test_numbers_that_differ_anyway_are_left_out_and_the_rest_of_the_line_is_judged():
    first, second = steps("0.5", "0.25", pid="72"), steps("0.5", "0.25", pid="73")
    same = compare(first, second, steps("0.5", "0.25", pid="99"))
    assert (same.differences, same.partly, same.losses) == ([], 2, 4)
    wrong = steps("0.5", "0.26", pid="99")
    assert compare(first, second, wrong).differences == [(first[1], wrong[1])]


def test_losses_that_differ_anyway_are_not_judged():
    first, second = steps("0.5", "0.25"), steps("0.5", "0.26")
    told = compare(first, second, steps("0.5", "0.27"))
    assert not told.differences
    assert told.partly == 2


def test_the_order_of_several_processes_lines_is_not_judged():
    one, two = steps("0.5", "0.25", end=" rank 0"), steps("0.5", "0.25", end=" rank 1")
    told = compare(one + two, two + one, [one[0], two[0], one[1], two[1]])
    assert not told.differences
    assert not told.reordered
    assert compare(one + two, one + two, two + one).reordered


def test_times_and_interleaved_ranks_together():
    """Which rank prints first is chance, and may be the same in two runs."""
    first = ["12:00:01 loss 0.5", "12:00:01 loss 0.7", "12:00:02 loss 0.4"]
    second = ["12:09:07 loss 0.5", "12:09:07 loss 0.7", "12:09:08 loss 0.4"]
    third = ["13:30:59 loss 0.7", "13:31:00 loss 0.5", "13:31:00 loss 0.4"]
    told = compare(first, second, third)
    assert not told.differences


@pytest.mark.parametrize(
    "line",
    ["took {} s", "{} ms a step", "{}.5 it/s", "at 12:00:{}", "{} tokens/sec", "Elapsed: {}",
     "{}s/it left", "2026-01-02 03:04:{},123 INFO", "{} minutes", "speed {}/s", "{}.25 seconds"],
)  # fmt: skip
def test_times_and_rates_are_never_judged(line):
    """Two runs may take equally long, to the second."""
    told = compare([line.format(12)], [line.format(12)], [line.format(13)])
    assert not told.differences


@pytest.mark.parametrize(
    "line", ["step {}", "{} samples", "{} hits", "size={}", "{}M", "x{}", "loss {} min 0 max 20"]
)
def test_other_numbers_are(line):
    assert compare([line.format(12)], [line.format(12)], [line.format(13)]).differences


@pytest.mark.parametrize(("extra", "pair"), [("more", (None, "more")), ("less", ("less", None))])
def test_lines_that_only_one_side_has(extra, pair):
    lines = steps("0.5")
    with_it = [*lines, extra]
    runs = (lines, lines, with_it) if extra == "more" else (with_it, with_it, lines)
    assert compare(*runs).differences == [pair]


def test_lines_that_come_more_or_less_often_anyway():
    first, second = ["waiting: 1", "waiting: 2", "done"], ["waiting: 1", "done"]
    told = compare(first, second, ["waiting: 1", "waiting: 2", "waiting: 3", "done"])
    assert (told.differences, told.unjudged) == ([], 3)


def test_a_line_that_comes_once_more_often():
    lines = ["warning: slow", "done"]
    assert compare(lines, lines, [*lines, "warning: slow"]).differences == [(None, "warning: slow")]


def test_hashes_dates_and_addresses_are_numbers():
    lines = [["2026-01-02 03:04:05 0x7f12 model 3f9c01ab77de loss 0.5"]]
    other = ["2026-01-02 03:04:09 0x7f99 model 3f9c01ab77de loss 0.5"]
    told = compare(lines[0], other, ["2026-01-02 03:05:00 0x7f00 model 3f9c01ab77de loss 0.5"])
    assert (told.differences, told.partly) == ([], 1)
    wrong = compare(lines[0], other, ["2026-01-02 03:05:00 0x7f00 model 3f9c01ab77df loss 0.5"])
    assert len(wrong.differences) == 1


def test_nothing_at_all():
    assert compare([], [], []).differences == []
    assert compare([], [], ["new"]).differences == [(None, "new")]
