"""Collectives issued by frameworks, as derived from ranks' sums."""

from dpwatch.run.derive.issuers import recent
from dpwatch.run.derive.summarize import summarize
from dpwatch.run.state.apply import apply
from dpwatch.run.state.encoding import decode, encode
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import Beat, Bye, Issuer
from tests.frames import batch, hello, step


def flag(calls, *, steps=None, **other):
    """One call of 8 bytes per step, reported after this many steps."""
    fields = {
        "framework": "Lightning", "function": "lightning.loops.sigterm", "purpose": "SIGTERM flag",
        "op": "broadcast", "group": "default", "ranks": 2, "dtype": "int64", "calls": calls,
        "nbytes": 8 * calls, "first_step": 0, "last_step": calls - 1,
    }  # fmt: skip
    return Issuer(**{**fields, **other}, steps=calls if steps is None else steps)


def run_of(steps, *told):
    state = RunState("run")
    for rank in range(2):
        apply(state, batch(hello(2), *map(step, range(steps)), rank=rank))
    apply(state, batch(Beat(steps, "", issuers=list(told)), rank=0))
    return state


def test_sums_become_means_over_the_steps_so_far():
    state = run_of(20, flag(20), flag(5, purpose="log", steps=20))
    often, seldom = summarize(state).issuers
    assert (often.calls, often.bytes, often.count_per_step, often.bytes_per_step) == (20, 160, 1, 8)
    assert (seldom.count_per_step, seldom.bytes_per_step) == (0.25, 2)
    assert summarize(decode(encode(state))).issuers == [often, seldom]


def test_calls_after_the_last_step_add_no_step():
    state = run_of(20, flag(20), flag(1, purpose="end", first_step=20, last_step=20, steps=21))
    apply(state, batch(Bye("finished"), rank=0))
    flagged, end = summarize(state).issuers
    assert flagged.count_per_step == 1.0
    assert end.count_per_step == 1 / 20


def test_means_are_unknown_before_the_first_step():
    (told,) = summarize(run_of(0, flag(3, last_step=0, steps=0))).issuers
    assert (told.calls, told.count_per_step, told.bytes_per_step) == (3, None, None)


def test_a_later_heartbeat_replaces_the_one_before():
    state = run_of(20, flag(10))
    apply(state, batch(Beat(20, "", issuers=[flag(20)]), rank=0))
    assert [each.calls for each in summarize(state).issuers] == [20]


def test_recent_issuers_are_those_still_active():
    told = [flag(200), flag(100, purpose="gone"), flag(3, purpose="start", last_step=0)]
    run = summarize(run_of(200, *told))
    assert [each.purpose for each in recent(run)] == ["SIGTERM flag"]
    assert len(run.issuers) == 3
    young = summarize(run_of(1, flag(1), flag(2, purpose="start", last_step=0, steps=1)))
    assert [each.purpose for each in recent(young)] == ["start", "SIGTERM flag"]
