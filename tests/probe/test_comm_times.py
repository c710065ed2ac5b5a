"""How long communication is in progress in a step, and how long it blocks the training thread."""

import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from dpwatch.probe.collectives import observer as collectives
from dpwatch.probe.collectives.reports import Reports, Span, _under_way_ns
from dpwatch.probe.steps.lanes import FORWARD, here
from dpwatch.probe.steps.step_record import COMM, IDLE, MOVED, Circumstances, step_record
from dpwatch.probe.steps.thread_clock import Clocks
from dpwatch.probe.steps.tracker import Steps
from dpwatch.wire.messages import Step

MS = 1_000_000


def span(issued_ms, done_ms, *, step=3, device=0, latest_ms=None, under_way=False):
    done_ns, latest_ns = (None if ms is None else ms * MS for ms in (done_ms, latest_ms or done_ms))
    return Span(device, step, issued_ms * MS, done_ns, latest_ns, under_way, native=False)


@pytest.mark.parametrize(
    ("spans", "ms"),
    [
        ([], 0),
        ([span(110, 120)], 10),
        ([span(110, 120), span(115, 130)], 20),  # what overlaps counts once
        ([span(110, 150), span(115, 120), span(160, 170)], 50),
        ([span(115, 120), span(110, 150)], 40),
        ([span(90, 110, step=2)], 10),  # issued in the step before
        ([span(190, 250)], 10),  # over in the one after
        ([span(110, None, under_way=True)], 90),
        ([span(20, None, step=1, under_way=True)], 100),
        ([span(20, 30, step=1)], 0),
        ([span(110, 120), span(130, None)], None),  # nobody knows
        ([span(110, 120), span(30, None, step=2)], 10),
        ([span(110, 150), span(115, None, latest_ms=150)], 40),  # its end doesn't matter
        ([span(110, 150), span(115, None, latest_ms=170)], None),  # here it may
    ],
)
def test_communication_time_of_a_step_is_the_union_of_spans(spans, ms):
    found = _under_way_ns(spans, Step(0, 3, 100 * MS, 200 * MS))
    assert found == (None if ms is None else ms * MS)


@pytest.fixture
def observed():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    rows = []
    observer = collectives.start(rows.append, lambda: 7)
    observer.rows = rows
    yield observer
    observer.close()
    dist.destroy_process_group()


def tell(observer):
    made = [row[0](*row[1:]) for row in observer.rows]
    observer.rows.clear()
    return made


def test_a_steps_record_has_the_union_of_its_calls(observed):
    start = time.monotonic_ns()
    for work in [dist.all_reduce(torch.ones(4), async_op=True) for _ in range(20)]:
        work.wait()
    step = Step(0, 7, start, time.monotonic_ns())
    calls = tell(observed)
    told = observed.complete(step).comm_ns
    assert 0 < told <= step.end_ns - step.start_ns
    assert told >= max(call.completed_ns - call.issued_ns for call in calls)
    assert observed.complete(Step(1, 7, start, step.end_ns)).comm_ns == 0  # another device


def test_steps_without_calls_have_none_and_old_calls_are_dropped(observed):
    assert observed.complete(Step(0, 3, 5, 9)).comm_ns == 0
    reports = Reports(print, lambda: 0, SimpleNamespace(), SimpleNamespace())
    for step in range(1000):
        reports._is_over(SimpleNamespace(
            device=0, step=step, issued_ns=step, done_ns=lambda: 5, is_final=lambda: True,
            from_python=True,
        ))  # fmt: skip
    assert len(reports._over) == 2


class Scheduled:
    """A thread's clock; the thread is blocked except when told to run."""

    def __init__(self):
        self.cpu = 0

    def read(self):
        return time.monotonic_ns(), self.cpu, 0


def test_blocked_time_is_counted_once(observed):
    """Blocked time in a phase is exposed, and so are waits; time blocked in a wait counts once."""
    lane = Steps(print, observed, devices=[], clocks=Clocks(), on_devices=print).main
    began = time.monotonic_ns()
    lane.adopt(Scheduled(), measuring=True)  # its time counts from here: within the step
    here.lane = observed.main = lane
    before = lane.enter(FORWARD)
    work = dist.all_reduce(torch.ones(4), async_op=True)
    time.sleep(0.003)  # as if C++ waited for one of its own
    work.wait()
    lane.leave(before)
    dist.all_reduce(torch.ones(4))  # between two phases
    ended = time.monotonic_ns()
    sums = lane.sums
    waits_ns = sum(call.blocked_ns for call in tell(observed))
    assert sums[MOVED] >= waits_ns
    assert sums[COMM] >= 3 * MS
    assert sums[MOVED] + sums[COMM] <= ended - began
    assert sums[COMM] + sums[IDLE] <= ended - began
    always = Circumstances(always=True, others=False, helpers=False, accelerator=False)
    told = step_record(0, 7, began, ended, sums, True, always, None)
    assert told.exposed_ns == sums[MOVED] + sums[COMM]


def test_no_exposed_time_exceeds_its_step():
    sums = [0] * 20
    sums[MOVED] = 50
    told = step_record(0, 7, 100, 140, sums, False, None, None)
    assert told.exposed_ns == 40
