"""`no_steps`: a process without training steps."""

import msgspec
import pytest

from dpwatch.run.derive.summarize import summarize
from dpwatch.run.diagnose.advance import advance
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import Batch, Bye, DeviceInfo, Hello, Step, Tick

HELLO = Hello(1, 0, "single", "", [DeviceInfo("cpu", "cpu")])
SECOND = 1_000_000_000


def frame(rank, seq, at_s, *records):
    at = int(at_s * SECOND)
    return Batch(2, "r", rank, "h", 7, seq, 0, at, at, list(records))


@pytest.fixture
def state():
    return RunState("r")


def kinds(state, at_s):
    advance(state, frame(-1, -1, at_s, Tick()))
    return {d.kind: d for d in state.diagnoses}


def test_a_run_without_steps_is_reported_with_the_reason(state):
    advance(state, frame(0, 0, 1, HELLO))
    assert "no_steps" not in kinds(state, 2)
    advance(state, frame(0, 1, 11, msgspec.structs.replace(HELLO, note="no backward has run")))
    said = kinds(state, 12)["no_steps"]
    assert (said.severity, said.ranks) == ("info", [0])
    assert "no backward has run" in said.text
    assert "dpwatch.step()" in said.text
    assert summarize(state).steps == 0


def test_the_finding_ends_with_the_first_step(state):
    advance(state, frame(0, 0, 11, msgspec.structs.replace(HELLO, note="no backward has run")))
    assert "no_steps" in kinds(state, 12)
    advance(state, frame(0, 1, 13, HELLO, Step(0, 0, 12 * SECOND, 13 * SECOND)))
    for second in range(14, 20):
        said = kinds(state, second)
    assert "no_steps" not in said


def test_a_failed_rank_is_not_reported_as_without_steps(state):
    note = msgspec.structs.replace(HELLO, note="no backward has run")
    advance(state, frame(0, 0, 1, note, Bye("failed", "OutOfMemoryError: out of memory")))
    assert "no_steps" not in kinds(state, 12)
