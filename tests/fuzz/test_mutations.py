"""Damaged frames by the thousand, into a state and out again. `make fuzz` sends a million."""

import msgspec
import zmq

from dpwatch.cli.output import json_text, report
from dpwatch.run.derive.summarize import summarize, view
from dpwatch.run.derive.view_messages import ViewWriter
from dpwatch.run.diagnose.advance import advance
from dpwatch.run.state.encoding import decode, encode
from dpwatch.run.state.run_state import RunState
from dpwatch.runtime import paths
from dpwatch.viewer.follower import Follower
from dpwatch.wire import codec
from dpwatch.wire.messages import Refused
from dpwatch.wire.viewer_messages import VIEW
from tests.frames import ddp_run
from tests.fuzz.mutations import Mutator

MUTATIONS = 4_000
REAL = 12_345


def test_no_damaged_frame_breaks_a_state_or_moves_another_ranks_figures():
    mutator, state = Mutator(1), RunState("run")
    real = [
        msgspec.structs.replace(frame, rank=REAL, pid=7) for frame in ddp_run(steps=40, ranks=1)
    ]
    every, refused, damaged = MUTATIONS // len(real), 0, 0
    for number in range(MUTATIONS):
        if number % every == 0 and real:
            advance(state, real.pop(0))
        try:
            batch = codec.decode(mutator.next())
        except codec.WireError:
            refused += 1
            continue
        damaged += sum(isinstance(record, Refused) for record in batch.records)
        advance(state, batch)
    assert 0.3 * MUTATIONS < refused < 0.9 * MUTATIONS
    assert damaged > MUTATIONS / 20
    again = decode(encode(state))
    shown = view(again)
    (row,) = [each for each in shown.run.ranks if each.rank == REAL]
    assert (row.steps, row.dropped, row.step_ms.p50, row.step_ms.p95) == (40, 0, 100.0, 100.0)
    assert row.memory.peak_bytes == 3200
    text = report([shown.run]) + json_text([shown.run])
    assert all(char.isprintable() or char == "\n" for char in text)


def test_a_damaged_view_is_no_view_or_one_that_can_be_shown():
    mutator = Mutator(2)
    state = RunState("run")
    for frame in ddp_run(steps=5, ranks=2):
        advance(state, frame)
    writer = ViewWriter(0)
    writer.update(state, summarize(state), curves=True)
    whole = writer.message(0)
    context, shown = zmq.Context(), 0
    follower = Follower(context, paths.run_dir("run"), hub_pid=1)
    for _ in range(500):
        damaged = bytearray(whole)
        mutator._damage(damaged)
        follower._take_answer(VIEW + bytes(damaged))
        shown += follower.view() is not None
    follower.close()
    context.term()
    assert shown > 30
