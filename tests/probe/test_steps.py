"""Phases, thread times and step boundaries, on manual clocks."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dpwatch.probe.steps import tracker as steps_module
from dpwatch.probe.steps.lanes import NO_PHASE
from dpwatch.probe.steps.models import strategy_of
from dpwatch.probe.steps.sampling import next_pair, pair_of
from dpwatch.wire.messages import Beat, DeviceInfo, Hello, Step, Transfer

MS = 1_000_000


class Timed(nn.Module):
    """A linear layer whose forward and backward advance the clock."""

    def __init__(self, forward: Callable[[], None], backward: Callable[[], None]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self._forward_time, self._backward_time = forward, backward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._forward_time()
        out = self.linear(x)
        if out.requires_grad:
            out.register_hook(lambda grad: self._backward_time())
        return out


class TimedSGD(torch.optim.SGD):
    def __init__(self, parameters: Any, spend: Callable[[], None]) -> None:
        super().__init__(parameters, lr=0.1)
        self.spend = spend

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.spend()
        super().step()
        return loss


class TimedData(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, spend: Callable[[], None]) -> None:
        self._spend = spend

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        if index % 4 == 0:
            self._spend()
        return torch.ones(3) * index


def parts(rig: Any) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    run = rig.clocks.run
    model = Timed(lambda: run(20 * MS), lambda: run(30 * MS))
    optimizer = TimedSGD(model.parameters(), lambda: run(5 * MS))
    loader = torch.utils.data.DataLoader(TimedData(lambda: run(7 * MS)), batch_size=4)
    return model, optimizer, loader


def test_phases_equal_the_time_spent_in_them(rig):
    model, optimizer, loader = parts(rig)
    for batch in loader:
        rig.clocks.run(2 * MS)
        loss = model(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        rig.clocks.run(1 * MS)
        optimizer.step()
    steps = rig.records(Step)
    assert [s.step for s in steps] == [0, 1, 2]
    assert [s.device for s in steps] == [0, 0, 0]
    for s in steps:
        assert s.end_ns - s.start_ns == 65 * MS
        assert (s.data_ns, s.forward_ns, s.backward_ns, s.optimizer_ns) == (
            7 * MS,
            20 * MS,
            30 * MS,
            5 * MS,
        )
        assert s.h2d_ns is None
        assert s.samples == 4
        assert s.on_cpu_ns == 65 * MS
    assert [s.start_ns for s in steps[1:]] == [s.end_ns for s in steps[:-1]]


def test_hello_has_the_models_parameters(rig):
    model, optimizer, _ = parts(rig)
    model(torch.ones(2, 3)).mean().backward()
    optimizer.step()
    hello = rig.records(Hello)[-1]
    assert (hello.params, hello.param_bytes) == (4, 16)
    assert [d.name for d in hello.devices] == ["cpu"]


def test_the_strategy_is_read_from_the_wrapper():
    class DistributedDataParallel(nn.Module):
        """Replaces torch's, which needs a process group."""

    class Own(DistributedDataParallel):
        pass

    assert strategy_of(Own()) == "ddp"
    assert strategy_of(nn.Linear(1, 1)) == ""
    assert strategy_of(nn.DataParallel(nn.Linear(1, 1))) == ""  # no devices: it passes through
    several = nn.DataParallel(nn.Linear(1, 1))
    several.device_ids = [0, 1]
    assert strategy_of(several) == "dp"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_loss_is_read_whatever_lies_around_it(rig, dtype):
    model, optimizer, _ = parts(rig)
    both = model(torch.ones(2, 3)).to(dtype).mean() * torch.tensor([1.0, -3.0], dtype=dtype)
    loss = both[1]  # not at the beginning of its storage
    loss.backward()
    optimizer.step()
    assert rig.records(Step)[0].loss == loss.item()


def test_loss_is_the_root_of_backward(rig):
    model, optimizer, _ = parts(rig)
    loss = model(torch.ones(2, 3)).mean()
    loss.backward()
    optimizer.step()
    (step,) = rig.records(Step)
    assert step.loss == loss.item()


def test_explicit_loss_and_samples_win(rig):
    model, optimizer, _ = parts(rig)
    model(torch.ones(2, 3)).mean().backward()
    rig.probe.loss(4.5)
    rig.probe.samples(3)
    rig.probe.samples(4)
    optimizer.step()
    (step,) = rig.records(Step)
    assert (step.loss, step.samples) == (4.5, 7)


@pytest.mark.parametrize("root", [torch.ones(2), torch.ones(1, dtype=torch.complex64)])
def test_a_non_scalar_root_leaves_the_loss_unknown(rig, root):
    w = nn.Parameter(root)
    optimizer = torch.optim.SGD([w], lr=0.1)
    torch.autograd.backward(w * 1, torch.ones_like(root))
    optimizer.step()
    (step,) = rig.records(Step)
    assert step.loss is None


def test_nan_loss_is_recorded(rig):
    w = nn.Parameter(torch.ones(()))
    (w * math.nan).backward()
    torch.optim.SGD([w], lr=0.1).step()
    (step,) = rig.records(Step)
    assert math.isnan(step.loss)


def test_accumulation_is_one_step(rig):
    model, optimizer, _ = parts(rig)
    for _ in range(2):
        for scale in (1.0, 2.0, 3.0):
            (model(torch.ones(2, 3)).mean() * 0 + scale).backward()
        optimizer.step()
        optimizer.zero_grad()
    steps = rig.records(Step)
    assert [s.step for s in steps] == [0, 1]
    for s in steps:
        assert (s.forward_ns, s.backward_ns) == (60 * MS, 90 * MS)
        assert s.samples == 6
        assert s.loss == 6.0  # what the step minimises: who wants the mean divides before


def test_a_scaled_loss_is_recorded_unscaled(rig):
    model, optimizer, _ = parts(rig)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = [model(torch.ones(2, 3)).mean() * 0 + value for value in (1.5, 2.5, 4.0)]
    scaler.scale(losses[0]).backward(retain_graph=True)
    for scaled in scaler.scale(losses[1:]):
        scaled.backward(retain_graph=True)
    scaler.step(optimizer)
    scaler.update()
    (model(torch.ones(2, 3)).mean() * 0 + 3.0).backward()  # without it
    optimizer.step()
    loss = model(torch.ones(2, 3)).mean()
    (scaler.scale(loss) / 2).backward()  # what came of it is nobody's guess
    optimizer.step()
    assert [s.loss for s in rig.records(Step)] == [8.0, 3.0, None]


def test_a_scaler_that_does_nothing_leaves_the_loss_as_it_is(rig):
    model, optimizer, _ = parts(rig)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(model(torch.ones(2, 3)).mean() * 0 + 1.5).backward()
    scaler.step(optimizer)
    assert [s.loss for s in rig.records(Step)] == [1.5]


def test_a_script_may_end_steps_itself(rig):
    model, optimizer, _ = parts(rig)
    for _ in range(3):
        for _ in range(2):  # such as one for the generator, one for the critic
            model(torch.ones(4, 3)).mean().backward()
            optimizer.step()
        rig.clocks.run(1 * MS)
        rig.probe.step()
    steps = rig.records(Step)  # the first two ended as yet by the optimizer
    assert [s.end_ns - s.start_ns for s in steps] == [55 * MS, 55 * MS, 112 * MS, 111 * MS]
    assert [s.backward_ns for s in steps] == [30 * MS, 30 * MS, 60 * MS, 60 * MS]


def test_steps_without_any_optimizer_can_be_ended_by_the_script(rig):
    model, *_ = parts(rig)
    rig.probe.step()
    for _ in range(2):
        model(torch.ones(4, 3))
        rig.probe.step()
    assert [(s.forward_ns, s.optimizer_ns) for s in rig.records(Step)] == [(20 * MS, None)] * 2


def test_a_first_explicit_end_after_the_optimizer_adds_no_empty_step(rig):
    model, optimizer, _ = parts(rig)
    for _ in range(2):
        model(torch.ones(4, 3)).mean().backward()
        optimizer.step()
        rig.probe.step()
    assert [s.end_ns - s.start_ns for s in rig.records(Step)] == [55 * MS] * 2


def test_short_steps_ended_by_the_script_are_counted(rig):
    for _ in range(35):
        rig.clocks.run(1 * MS)
        rig.probe.step()
    assert rig.probe.steps.step == 34  # the first word began step 0


def test_two_optimizers_after_one_backward_are_one_step(rig):
    model, first, _ = parts(rig)
    second = TimedSGD(model.parameters(), lambda: rig.clocks.run(3 * MS))
    for _ in range(3):
        model(torch.ones(2, 3)).mean().backward()
        first.step()
        second.step()
    steps = rig.records(Step)
    assert [s.optimizer_ns for s in steps] == [5 * MS, 8 * MS, 8 * MS]
    assert steps[1].end_ns - steps[1].start_ns == 58 * MS


def test_an_optimizer_inside_another_counts_once(rig):
    model, inner, _ = parts(rig)
    outer = TimedSGD(model.parameters(), inner.step)
    for _ in range(2):
        model(torch.ones(2, 3)).mean().backward()
        outer.step()
    assert [s.optimizer_ns for s in rig.records(Step)] == [5 * MS, 5 * MS]


def test_what_an_optimizer_does_after_the_one_inside_it_is_in_the_same_step(rig):
    """ZeRO's broadcasts, for instance; also in skipped steps."""
    model = nn.Linear(3, 1)
    inner = TimedSGD(model.parameters(), lambda: rig.clocks.run(MS))
    steps = rig.probe.steps
    seen, sampled_out = [], set()

    def update():
        inner.step()
        seen.append(steps.step)
        sampled_out.add(steps.main.sampled_out)

    outer = TimedSGD(model.parameters(), update)
    for _ in range(40):
        model(torch.ones(2, 3)).mean().backward()
        outer.step()
    assert sampled_out == {False, True}
    assert seen == list(range(40))


def test_an_optimizer_that_raises_in_a_skipped_step_affects_no_other(rig):
    model, sampled_out = nn.Linear(3, 1), []

    def update():
        rig.clocks.run(MS)
        sampled_out.append(rig.probe.steps.main.sampled_out)
        if len(sampled_out) == 15:
            raise ZeroDivisionError

    optimizer = TimedSGD(model.parameters(), update)
    for _ in range(40):
        model(torch.ones(2, 3)).mean().backward()
        with contextlib.suppress(ZeroDivisionError):
            optimizer.step()
    assert sampled_out[14]
    assert rig.probe.steps.step == 39  # the next step has both backwards


def test_phases_of_a_closure_are_separate_from_the_optimizers(rig):
    model, optimizer, _ = parts(rig)

    def closure() -> torch.Tensor:
        loss = model(torch.ones(2, 3)).mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    for s in rig.records(Step):
        assert (s.forward_ns, s.backward_ns, s.optimizer_ns) == (20 * MS, 30 * MS, 5 * MS)
        assert s.end_ns - s.start_ns == 55 * MS
        assert s.loss is not None


def test_evaluation_is_other(rig):
    model, optimizer, loader = parts(rig)
    for _ in range(2):
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()
        with torch.no_grad():
            for batch in loader:
                model(batch)
    model(torch.ones(2, 3)).mean().backward()
    optimizer.step()
    steps = rig.records(Step)
    evaluated = steps[1]
    assert evaluated.forward_ns == 20 * MS
    assert evaluated.data_ns is None
    assert evaluated.samples == 2
    assert evaluated.end_ns - evaluated.start_ns == (55 + 3 * 27) * MS


def test_checkpointed_forward_belongs_to_backward(rig):
    from torch.utils.checkpoint import checkpoint

    block, optimizer, _ = parts(rig)

    class Model(nn.Module):
        def forward(self, x: torch.Tensor, reentrant: bool) -> torch.Tensor:
            return checkpoint(block, x, use_reentrant=reentrant)

    x = torch.ones(2, 3, requires_grad=True)
    for reentrant in (True, False):
        Model()(x, reentrant).mean().backward()
        optimizer.step()
    for s in rig.records(Step):
        assert s.forward_ns == 20 * MS
        assert s.backward_ns == 50 * MS


def test_exceptions_propagate_and_leave_phases_consistent(rig):
    model, optimizer, _ = parts(rig)

    class Boom(Exception):
        pass

    def boom() -> None:
        raise Boom

    bad_forward = Timed(boom, lambda: None)
    bad_backward = Timed(lambda: None, boom)
    bad_loader = torch.utils.data.DataLoader(TimedData(boom), batch_size=4)
    with pytest.raises(Boom):
        bad_forward(torch.ones(2, 3))
    with pytest.raises(Boom):
        bad_backward(torch.ones(2, 3)).mean().backward()
    with pytest.raises(Boom):
        next(iter(bad_loader))
    assert rig.probe.steps.main.phase == NO_PHASE
    assert not rig.probe.steps.main.in_module
    model(torch.ones(2, 3)).mean().backward()
    optimizer.step()
    (step,) = rig.records(Step)
    assert (step.forward_ns, step.backward_ns) == (20 * MS, 30 * MS)


def test_an_optimizer_that_raised_makes_one_step_unknown_and_no_more(rig):
    model, optimizer, _ = parts(rig)
    spend = optimizer.spend

    def boom() -> None:
        raise ValueError("no")

    optimizer.spend = boom
    model(torch.ones(2, 3)).mean().backward()
    with pytest.raises(ValueError, match="no"):
        optimizer.step()
    optimizer.spend = spend
    for _ in range(2):
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()
    torn, whole = rig.records(Step)
    assert (torn.forward_ns, torn.optimizer_ns) == (None, None)
    assert (whole.forward_ns, whole.optimizer_ns) == (20 * MS, 5 * MS)


@pytest.fixture(autouse=True)
def _measured(monkeypatch):
    """Steps count as long from ten milliseconds on, so that the tests' figures stay small."""
    monkeypatch.setattr(steps_module, "MEASURED_STEP_NS", 10 * MS)


def train_with(rig: Any, forward: Callable[[], None], backward: Callable[[], None]) -> Step:
    model = Timed(forward, backward)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()
    return rig.records(Step)[1]


def check_sum(step: Step) -> None:
    parts = (step.on_cpu_ns, step.runqueue_ns, step.gil_wait_ns or 0, step.idle_ns)
    assert sum(parts) == step.end_ns - step.start_ns


@pytest.fixture
def other_thread():
    """A second Python thread, which could hold the GIL."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


def test_blocked_in_a_phase_is_gil_wait(rig, other_thread):
    step = train_with(
        rig, lambda: (rig.clocks.run(10 * MS), rig.clocks.block(4 * MS)), lambda: None
    )
    assert (step.on_cpu_ns, step.gil_wait_ns, step.idle_ns) == (10 * MS, 4 * MS, 0)
    check_sum(step)


def test_blocked_with_no_other_thread_is_idle(rig, monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 2)  # this one and the sender
    step = train_with(rig, lambda: rig.clocks.block(14 * MS), lambda: None)
    assert (step.gil_wait_ns, step.idle_ns) == (0, 14 * MS)


def test_run_queue_wait_is_separate(rig, other_thread):
    step = train_with(rig, lambda: rig.clocks.queue(14 * MS), lambda: rig.clocks.run(MS))
    assert (step.on_cpu_ns, step.runqueue_ns, step.gil_wait_ns) == (MS, 14 * MS, 0)
    check_sum(step)


def test_with_torch_threads_gil_wait_is_unknown(rig, other_thread):
    torch.set_num_threads(2)
    step = train_with(rig, lambda: rig.clocks.block(14 * MS), lambda: None)
    assert (step.gil_wait_ns, step.idle_ns) == (None, 14 * MS)
    check_sum(step)


def test_blocked_in_communication_is_exposed_and_idle(rig, other_thread):
    def backward() -> None:
        rig.collectives.issued += 1
        rig.clocks.run(10 * MS)
        rig.clocks.block(6 * MS)

    step = train_with(rig, lambda: rig.clocks.run(3 * MS), backward)
    assert (step.exposed_ns, step.idle_ns, step.gil_wait_ns) == (6 * MS, 6 * MS, 0)
    check_sum(step)


def test_waiting_is_idle_never_gil(rig, other_thread):
    def forward() -> None:
        rig.clocks.block(2 * MS)
        with rig.probe.waiting(), rig.probe.waiting():
            rig.clocks.block(11 * MS)

    step = train_with(rig, forward, lambda: None)
    assert (step.gil_wait_ns, step.idle_ns) == (2 * MS, 11 * MS)
    check_sum(step)


def test_blocked_outside_phases_is_idle(rig, other_thread):
    model = Timed(lambda: rig.clocks.run(10 * MS), lambda: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        rig.clocks.block(5 * MS)
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()
    step = rig.records(Step)[1]
    assert (step.on_cpu_ns, step.idle_ns, step.gil_wait_ns) == (10 * MS, 5 * MS, 0)


def steps_of_30_ms(rig):
    model = Timed(lambda: rig.clocks.run(30 * MS), lambda: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()
    return rig.records(Step)


def test_virtual_devices_that_share_a_process_are_measured_in_shorter_steps(rig, monkeypatch):
    monkeypatch.setattr(steps_module, "MEASURED_STEP_NS", 50 * MS)
    rig.probe.steps.devices = [DeviceInfo(f"vgpu:{n}", "virtual") for n in range(2)]
    assert all(step.on_cpu_ns is not None for step in steps_of_30_ms(rig))


def test_short_steps_are_measured_now_and_then(rig, monkeypatch):
    monkeypatch.setattr(steps_module, "MEASURED_STEP_NS", 50 * MS)
    steps = steps_of_30_ms(rig)
    measured = [0, *(pair_of(block) + 1 for block in range(3))]
    assert [s.step for s in steps if s.on_cpu_ns is not None] == measured
    assert all(s.loss is not None for s in steps)
    assert all(s.forward_ns == 30 * MS for s in steps)
    assert all(s.samples == 2 for s in steps)


def short_steps(rig, count, took_ms=lambda _: 1, optimizers=1):
    model = Timed(lambda: None, lambda: None)
    stepping = [torch.optim.SGD(model.parameters(), lr=0.0) for _ in range(optimizers)]
    for index in range(count):
        model(torch.ones(2, 3)).mean().backward()
        rig.clocks.run(int(took_ms(index) * MS))
        for optimizer in stepping:
            optimizer.step()


@pytest.mark.parametrize("optimizers", [1, 2])
def test_some_short_steps_are_measured_and_all_are_counted(rig, optimizers):
    short_steps(rig, 45, took_ms=lambda _: 13, optimizers=optimizers)
    steps = rig.records(Step)
    pairs = [pair_of(block) for block in range(1, 5)]
    looked_at = [*range(10), *(first + turn for first in pairs for turn in (0, 1))]
    assert [s.step for s in steps] == [step for step in looked_at if step < 45]
    assert {s.end_ns - s.start_ns for s in steps} == {13 * MS}
    assert {s.start_ns - 1_000 - s.step * 13 * MS for s in steps} == {0}
    assert {s.samples for s in steps} == {2}
    assert rig.records(Beat)[-1].step == 45


@pytest.mark.parametrize(
    ("took_ms", "doublings"), [(25, 0), (13, 0), (12.5, 1), (6, 2), (3, 3), (1, 4), (0, 8)]
)
def test_fewer_of_shorter_steps_are_measured(rig, took_ms, doublings):
    first = next_pair(10, doublings)
    second = next_pair(first + 2, doublings)
    short_steps(rig, second + 2, took_ms=lambda _: took_ms)
    looked_at = [s.step for s in rig.records(Step)]
    assert looked_at == [*range(10), first, first + 1, second, second + 1]
    assert rig.records(Beat)[-1].step == second + 2


def test_steps_over_25_ms_are_all_measured(rig):
    short_steps(rig, 45, took_ms=lambda _: 26)
    assert [s.step for s in rig.records(Step)] == list(range(45))


@pytest.mark.parametrize(("before", "after"), [(13, 26), (1, 7)])
def test_steps_that_become_long_are_measured_from_the_next_on(rig, before, after):
    turns = next_pair(20, 0) + 4
    short_steps(rig, turns + 2, took_ms=lambda index: after if index >= turns else before)
    last = rig.records(Step)[-1]
    assert (last.step, last.end_ns - last.start_ns) == (turns + 1, after * MS)


def test_after_an_unusual_step_more_are_measured_once_a_second(rig):
    turns = next_pair(20, 3) + 4  # a second and more from the one to the third
    at = [turns, turns + 60, turns + 600]
    short_steps(rig, at[2] + 30, took_ms=lambda index: 40 if index in at else 3)
    looked_at = {s.step for s in rig.records(Step)}
    after = [sum(step + more in looked_at for more in range(1, 21)) for step in at]
    assert after[0] == after[2] == 20
    assert after[1] <= 5


def test_with_several_lanes_every_step_is_measured(rig):
    with rig.probe.lane(1):
        pass
    short_steps(rig, 25)
    assert [s.step for s in rig.records(Step) if s.device == 0] == list(range(25))


def test_measuring_again_inside_a_module_leaves_no_state(rig):
    model = Timed(lambda: rig.clocks.run(MS), lambda: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    looked_at = next_pair(10, 4) + 1
    for _ in range(looked_at + 1):
        rig.probe.samples(7)
        rig.probe.loss(4.5)
        with rig.probe.phase("data"):
            pass
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()
    last = rig.records(Step)[-1]
    assert (last.step, last.samples, last.loss, last.forward_ns) == (looked_at, 7, 4.5, MS)


def test_without_a_run_queue_figure_the_split_is_unknown(rig):
    rig.probe.steps.main.clock.knows_runqueue = False
    step = train_with(rig, lambda: rig.clocks.run(20 * MS), lambda: None)
    assert (step.on_cpu_ns, step.runqueue_ns, step.gil_wait_ns, step.idle_ns) == (None,) * 4
    assert step.forward_ns == 20 * MS


def run_in_thread(work: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def test_a_worker_lane_splits_jobs_from_the_rest(rig, other_thread):
    model, optimizer, _ = parts(rig)
    clocks, probe = rig.clocks, rig.probe

    def job() -> None:
        with probe.lane(1), probe.phase("forward"):
            probe.samples(5)
            clocks.run(8 * MS)
            clocks.block(4 * MS)
            with probe.waiting():
                clocks.block(3 * MS)
            with probe.transfer("reduce", 1, 0, 100):
                clocks.run(2 * MS)
            with probe.transfer("reduce", 1, 0, 50):
                clocks.run(1 * MS)

    for _ in range(2):
        with probe.phase("forward"), probe.waiting():
            run_in_thread(job)
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()
    steps = rig.records(Step)
    assert [(s.step, s.device) for s in steps] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    main, worker = steps[2:]
    wall = (18 + 55) * MS
    assert worker.end_ns - worker.start_ns == wall
    assert worker.forward_ns == 18 * MS
    assert worker.backward_ns is None
    assert worker.samples == 5
    assert worker.loss is None
    assert worker.on_cpu_ns == 11 * MS
    assert worker.gil_wait_ns == 4 * MS
    assert worker.idle_ns == wall - 15 * MS
    assert worker.exposed_ns == 3 * MS
    assert main.forward_ns == 38 * MS
    assert (main.idle_ns, main.gil_wait_ns) == (18 * MS, 0)
    check_sum(main)
    check_sum(worker)
    moved = rig.link.records(Transfer)
    assert [(t.step, t.kind, t.src, t.dst, t.nbytes, t.duration_ns) for t in moved] == [
        (0, "reduce", 1, 0, 150, 3 * MS),
        (1, "reduce", 1, 0, 150, 3 * MS),
    ]


def test_the_training_thread_may_work_for_other_lanes(rig, other_thread):
    model, optimizer, _ = parts(rig)
    for _ in range(2):
        with rig.probe.lane(1), rig.probe.phase("forward"):
            rig.clocks.run(6 * MS)
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()
    main, worker = rig.records(Step)[2:]
    assert (worker.on_cpu_ns, worker.forward_ns) == (6 * MS, 6 * MS)
    assert (main.on_cpu_ns, main.idle_ns) == (55 * MS, 6 * MS)


def test_a_lane_in_use_is_not_taken_again(rig):
    with rig.probe.lane(1), rig.probe.lane(1), rig.probe.lane(0):
        rig.clocks.run(MS)
    assert not rig.probe.steps.lanes[1].taken


def test_an_unknown_phase_counts_as_other(rig):
    with rig.probe.phase("lunch"):
        rig.clocks.run(MS)
    assert rig.probe.steps.main.phase == NO_PHASE
