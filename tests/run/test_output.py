"""The last lines printed by each rank, within one budget for all."""

import msgspec

from dpwatch.run.derive.summarize import summarize, view
from dpwatch.run.model.snapshot import Printed
from dpwatch.run.state.apply import apply
from dpwatch.run.state.encoding import decode, encode
from dpwatch.run.state.output import LINES, RUN_BYTES, RankLines, RunOutput
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import Line, Output
from tests.frames import batch, hello, played


def output(*texts, stream="out", at=0, **more):
    return Output(stream, [Line(at + n, text) for n, text in enumerate(texts)], **more)


def kept(state, rank=0):
    (found,) = [each for each in view(state).output if each.rank == rank]
    return [printed.text for printed in found.lines]


def test_lines_are_kept_by_rank_and_stream():
    state = played([
        batch(hello(2, tells_output=True), output("a", "b"), rank=1),
        batch(hello(2, tells_output=True), output("c", stream="err", at=7), rank=0),
    ])  # fmt: skip
    seen = view(state)
    assert [each.rank for each in seen.output] == [0, 1]
    assert seen.output[0].lines == (Printed(7, "err", "c"),)
    assert seen.tells_output == 2
    assert kept(state, 1) == ["a", "b"]


def test_an_open_line_comes_last_and_is_replaced():
    state = RunState("run")
    for n, still_open in enumerate((Line(1, "1%"), Line(2, "2%"), None)):
        apply(state, batch(output(f"line {n}", open=still_open), seq=n))
        expected = [f"line {m}" for m in range(n + 1)] + ([still_open.text] if still_open else [])
        assert kept(state) == expected


def test_the_last_lines_stay_and_the_others_are_counted():
    state = RunState("run")
    for n in range(500):
        apply(state, batch(output(str(n), left_out=2), seq=n))
    (found,) = view(state).output
    assert [p.text for p in found.lines] == [str(n) for n in range(500 - LINES, 500)]
    assert (found.let_go, found.left_out) == (500 - LINES, 1000)


def test_many_ranks_share_one_budget():
    ranks, state = 1024, RunState("run")
    for rank in range(ranks):
        frame = batch(hello(ranks), output(*["x" * 400] * LINES), rank=rank)
        apply(state, frame)
    assert sum(lines.nbytes for lines in state.output.ranks.values()) <= RUN_BYTES
    assert all(lines.lines for lines in state.output.ranks.values())
    assert len(msgspec.msgpack.encode(state.output)) <= 1.5 * RUN_BYTES


def test_ranks_beyond_the_announced_world_size_stay_within_the_budget():
    run = RunOutput()
    for rank in range(50):
        run.add(rank, output(*["x" * 400] * LINES), 1)
        assert sum(lines.nbytes for lines in run.ranks.values()) <= RUN_BYTES
    for lines in run.ranks.values():
        assert lines.nbytes == RankLines(lines=lines.lines).nbytes + sum(
            64 + len(p.text) for p in lines.lines
        )


def test_hostile_output_is_bounded():
    state = RunState("run")
    apply(
        state,
        batch(output("x" * 900_000, stream="\x1b[31m", left_out=-5, open=Line(0, "y" * 9999))),
    )
    (found,) = view(state).output
    assert [len(printed.text) for printed in found.lines] == [400, 400]
    assert {printed.stream for printed in found.lines} == {"out"}
    assert found.left_out == 0


def test_output_is_in_the_view_but_not_in_the_summary():
    state = played([batch(hello(tells_output=True), output("a", open=Line(3, "b")))])
    late = decode(encode(state))
    assert view(late) == view(state)
    assert "output" not in msgspec.to_builtins(summarize(state))


def test_a_restarted_rank_keeps_its_output():
    state = played([
        batch(hello(), output("Traceback"), pid=1),
        batch(hello(), output("again"), pid=2),
    ])  # fmt: skip
    assert kept(state) == ["Traceback", "again"]
