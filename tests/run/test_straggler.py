"""`straggler` and `wait_in_turn`: which rank is last and why, from frames with chosen times."""

import random

import msgspec
import pytest

from dpwatch.run.derive.summarize import summarize
from dpwatch.run.diagnose import straggler, wait_in_turn
from dpwatch.run.diagnose.finding import MOST_LOOKED_AT, some_of
from dpwatch.run.state.apply import apply
from dpwatch.run.state.flush import flush
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import Collective, Step
from tests.frames import MS, START_NS, batch, hello, window

RANKS = 4
PHASES = {"data": 5, "forward": 20, "backward": 50, "optimizer": 5}
REST_MS = 5
"""Host code between optimizer and data."""


class Run:
    """Ranks with equal steps and chosen delays, which wait for each other in backward."""

    def __init__(self, ranks=RANKS, noise_ms=0.0, seed=0, kind="cpu"):
        self.state = RunState("run")
        self.random = random.Random(seed)
        self.noise_ms = noise_ms
        self.clock = [float(START_NS)] * ranks
        self.steps = 0
        for r in range(ranks):
            apply(self.state, batch(hello(ranks, kind=kind), rank=r))

    def step(self, late=None, phase="forward", ms=50.0, looked_at=True):
        """Adds a step; rank `late` spends `ms` more in `phase` (`other`: between phases)."""
        spans = [self._spans(ms if r == late else 0.0, phase) for r in range(len(self.clock))]
        arrived = []
        for r, span in enumerate(spans):
            before = span["other"] + span["data"] + span["forward"] + span["backward"] / 2
            arrived.append(self.clock[r] + before * MS)
        together = max(arrived)
        for r, span in enumerate(spans):
            end = together + (PHASES["backward"] / 2 + span["optimizer"]) * MS
            self._send(r, span, arrived[r], end, looked_at)
            self.clock[r] = end
        self.steps += 1

    def _spans(self, late_ms, phase):
        spans = {**PHASES, "other": REST_MS}
        spans["forward"] += abs(self.random.gauss(0, self.noise_ms))
        # The collective comes halfway through backward.
        spans[phase] += 2 * late_ms if phase == "backward" else late_ms
        return spans

    def _send(self, r, span, arrived, end, looked_at):
        start = int(self.clock[r])
        call = Collective(
            step=self.steps,
            op="all_reduce",
            group="default",
            ranks=len(self.clock),
            seq=self.steps,
            nbytes=1000,
            issued_ns=int(arrived),
            phase="backward" if looked_at else "",
            into_ns=int(span["backward"] / 2 * MS) if looked_at else None,
            where="train.py:7",
        )
        records = [call]
        if looked_at:
            told = {f"{name}_ns": int(span[name] * MS) for name in PHASES}
            told["backward_ns"] += int(end - arrived)  # it waits there
            records.append(Step(0, self.steps, start, int(end), **told))
        apply(self.state, batch(*records, rank=r, now_ns=int(end)))

    def finding(self):
        return straggler.rule(summarize(self.state), self.state)


@pytest.mark.parametrize("phase", ["data", "forward", "backward", "optimizer", "other"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_late_rank_and_its_phase_are_named_within_five_steps(phase, ranks):
    run = Run(ranks, noise_ms=3)
    for _ in range(12):
        run.step()
    assert run.finding() is None
    for _ in range(6 if phase == "optimizer" else 5):  # which is late to the step after
        run.step(late=1, phase=phase)
    found = run.finding()
    assert (found.ranks, found.evidence["phase"]) == ([1], phase)
    assert found.evidence["pattern"] == "constant"
    assert found.began == (13 if phase == "optimizer" else 12)
    assert found.evidence["gap_ms"] == pytest.approx(50, abs=10)
    assert found.evidence["excess_ms"] == pytest.approx(50, abs=10)
    assert found.severity == "warning"


def test_a_rank_that_is_late_from_the_first_step_on_is_named_too():
    run = Run(noise_ms=3)
    for _ in range(6):
        run.step(late=3, phase="data")
    assert run.finding().ranks == [3]


def test_a_healthy_run_of_a_thousand_noisy_steps_is_silent():
    for seed, ranks in ((1, 2), (2, 4), (3, 8)):
        run = Run(ranks, noise_ms=10, seed=seed)
        for _ in range(1000):
            run.step()
            if run.steps % 7 == 0:
                assert run.finding() is None


def test_small_or_alternating_delays_are_no_straggler():
    run = Run(noise_ms=3)
    for _ in range(40):
        run.step(late=1, ms=4)  # under 5 % of the step
    assert run.finding() is None
    run = Run(noise_ms=3)
    for i in range(40):
        run.step(late=i % RANKS)  # each in turn
    assert run.finding() is None


def test_an_occasionally_late_rank_is_named_so():
    run = Run(noise_ms=3)
    for i in range(100):
        run.step(late=2 if i % 12 == 5 else None, phase="other", ms=80)
    found = run.finding()
    assert (found.ranks, found.evidence["pattern"]) == ([2], "occasional")
    assert (found.severity, found.evidence["phase"]) == ("info", "other")
    assert found.evidence["late_steps"] == 8


def test_the_finding_ends_once_the_rank_is_fast_again():
    run = Run(noise_ms=3)
    for _ in range(10):
        run.step(late=1)
    assert run.finding().ranks == [1]
    for _ in range(10):
        run.step()
    found = run.finding()
    assert found is None or found.evidence["pattern"] == "occasional"


def test_the_phase_is_unknown_for_unsampled_steps():
    run = Run(noise_ms=3)
    for _ in range(8):
        run.step()
    for _ in range(8):
        run.step(late=1, looked_at=False)
    run.step()
    run.step()
    found = run.finding()
    assert found is None or found.evidence["phase"] is None


def test_time_waiting_for_a_core_does_not_count():
    run = Run(noise_ms=3)
    for _ in range(16):
        run.step(late=1, ms=30)
    assert run.finding().ranks == [1]
    for r, rank in run.state.ranks.items():
        lane = rank.lanes[0]
        lane.recent = window(_queued(s, 30 if r == 1 else 1) for s in lane.recent.steps(0))
    assert run.finding() is None


def test_a_device_whose_phases_were_not_measured_names_no_cause():
    for kind, phase in (("cpu", "other"), ("cuda", None)):
        run = Run(noise_ms=3, kind=kind)
        for _ in range(16):
            run.step(late=1)
        flush(run.state)
        for rank in run.state.ranks.values():
            lane = rank.lanes[0]
            lane.recent = window(_untimed(step) for step in lane.recent.steps(0))
        found = run.finding()
        assert found.ranks == [1]
        assert found.evidence["phase"] == phase


def _untimed(step):
    return msgspec.structs.replace(
        step, data_ns=None, forward_ns=None, backward_ns=None, optimizer_ns=None
    )


def _queued(step, ms):
    return msgspec.structs.replace(step, runqueue_ns=ms * MS)


def test_the_cause_is_named_and_not_its_victim_in_the_next_group():
    """Crossed groups of two: rank 1 delays 0, which is then late for its call with 2."""
    state = RunState("run")
    for r in range(4):
        apply(state, batch(hello(4), rank=r))
    pairs = [("a", 0, 1), ("a2", 2, 3), ("b", 0, 2), ("b2", 1, 3)]
    for index in range(20):
        at = START_NS + index * 100 * MS
        late = 50 * MS if index >= 10 else 0
        for n, (group, *members) in enumerate(pairs):
            for r in members:
                delayed = r == 1 or (r == 0 and n >= 2)
                issued = at + (10 if n < 2 else 20) * MS + (late if delayed else 0) + r * 1000
                call = Collective(index, "all_reduce", group, 2, index, 8, issued)
                apply(state, batch(call, rank=r, now_ns=at))
        for r in range(4):
            apply(state, batch(Step(0, index, at, at + 100 * MS), rank=r, now_ns=at + 100 * MS))
    found = straggler.rule(summarize(state), state)
    assert found.ranks == [1]


def in_turn(ms, queued_ms=0):
    """Ranks that take turns in delaying each step by this many milliseconds."""
    run = Run()
    for index in range(40):
        run.step(late=index % RANKS, ms=ms)
    flush(run.state)
    for rank in run.state.ranks.values():
        lane = rank.lanes[0]
        lane.recent = window(_queued(s, queued_ms) for s in lane.recent.steps(0))
    return wait_in_turn.rule(summarize(run.state), run.state)


def test_wait_in_turn_costs_waits_without_time_waiting_for_a_core():
    found = in_turn(60)  # three of four ranks wait 60 of 145 ms: 31 %
    assert (found.severity, found.ranks) == ("warning", [0, 1, 2, 3])
    assert found.evidence["cost"] == pytest.approx(45 / 145, abs=0.02)
    assert (found.evidence["phase"], found.evidence["pattern"]) == ("forward", "varying")
    crowded = in_turn(60, queued_ms=8)
    assert (crowded.severity, crowded.evidence["cost"]) == ("info", found.evidence["cost"])
    assert in_turn(60, queued_ms=14) is None
    assert in_turn(15) is None


@pytest.mark.parametrize("ranks", [0, 1, 64, 65, 127, 128, 1000])
def test_the_number_of_compared_ranks_is_limited(ranks):
    some = some_of(range(ranks))
    assert min(ranks, MOST_LOOKED_AT // 2) <= len(some) <= MOST_LOOKED_AT
