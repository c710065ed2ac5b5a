"""The memory ledger against sums by hand and the profiler's allocator events."""

import gc
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn
from torch._dynamo import eval_frame
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from dpwatch.probe.memory import ledger as ledger_module
from dpwatch.probe.memory.account import account
from dpwatch.probe.memory.ledger import Ledger
from dpwatch.wire.messages import CATEGORIES, DeviceInfo, Memory

WIDTH, BATCH, CLASSES = 256, 64, 10


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def records():
    return []


@pytest.fixture
def ledger(records):
    ledger = Ledger(lambda record: records.append(Memory(*record[1:])))
    yield ledger
    ledger.close()
    assert _get_current_dispatch_mode_stack() == []
    assert "resize_" not in vars(torch.UntypedStorage)


def build(width=WIDTH, optimizer=torch.optim.Adam, **kwargs):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.LayerNorm(width),
        nn.Linear(width, CLASSES),
    )  # fmt: skip
    return model, optimizer(model.parameters(), **kwargs)


def one_step(model, optimizer, width=WIDTH):
    inputs, targets = torch.randn(BATCH, width), torch.randint(CLASSES, (BATCH,))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss.item()


def train(ledger, model, optimizer, steps, step=one_step, first=0):
    losses = []
    for number in range(first, first + steps):
        ledger.step_begin(number)
        with record_function(f"step {number}"):
            losses.append(step(model, optimizer))
        ledger.step_end(number, [optimizer], [model])
    return losses


def bytes_of(tensors):
    return sum(tensor.nbytes for tensor in tensors)


def allocator_peaks(profiler):
    """Bytes the allocator held at each step's peak, with all allocations seen."""
    events = list(profiler.profiler.kineto_results.events())
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    peaks = {}
    for event in events:
        if not event.name().startswith("step "):
            continue
        held = peak = 0
        for at_ns, delta in memory:
            if at_ns > event.end_ns():
                break
            if at_ns > event.start_ns():
                peak = max(peak, held)  # what was there when it began counts too
            held += delta
            if at_ns > event.start_ns():
                peak = max(peak, held)
        peaks[int(event.name().removeprefix("step "))] = peak
    return peaks


def allocator(**kwargs):
    return profile(activities=[ProfilerActivity.CPU], profile_memory=True, **kwargs)


# -- what is held ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        (torch.optim.Adam, lambda params, count: 2 * params + 4 * count),
        (torch.optim.SGD, lambda params, count: 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda params, count: params),
    ],
)
def test_params_grads_and_optimizer_are_exact(ledger, records, kind, state):
    model, optimizer = build(optimizer=kind)
    train(ledger, model, optimizer, steps=3)
    params = bytes_of(model.parameters())
    assert [record.step for record in records] == [1, 2]
    for record in records:
        for held in (record.current, record.peak):
            assert held.params == held.grads == params
            assert held.optimizer == state(params, len(list(model.parameters())))


def test_categories_sum_to_the_totals(ledger, records):
    train(ledger, *build(), steps=12)
    assert [record.step for record in records][:2] == [1, 2]
    for record in records:
        assert sum(getattr(record.peak, name) for name in CATEGORIES) == record.peak_bytes
        assert sum(getattr(record.current, name) for name in CATEGORIES) == record.current_bytes
        assert record.source == "ledger"


def test_activations_are_what_backward_needs(ledger):
    """By hand, when backward begins: the input and the ReLU's output are saved."""
    model = nn.Sequential(nn.Linear(64, 128, bias=False), nn.ReLU(), nn.Linear(128, 32, bias=False))
    optimizer = torch.optim.SGD(model.parameters())
    held = []

    def look(_):
        if ledger._sampling:
            held.append(account(list(ledger._tracker.events))[0].current)

    def step(model, optimizer):
        inputs = torch.randn(16, 64)
        output = model(inputs)
        output.register_hook(look)
        optimizer.zero_grad()
        loss = output.sum()
        loss.backward()
        optimizer.step()

    train(ledger, model, optimizer, steps=3, step=step)
    inputs, relu, output, loss = 16 * 64 * 4, 16 * 128 * 4, 16 * 32 * 4, 4
    root_gradient = 4
    assert len(held) == 2
    for now in held:
        assert now.activations == inputs + relu + output + loss + root_gradient
        assert now.params == bytes_of(model.parameters())


def test_tied_weights_count_once(ledger, records):
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters())

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.randn(2, WIDTH)).sum().backward()
        optimizer.step()

    train(ledger, model, optimizer, steps=2, step=step)
    assert records[0].current.params == (WIDTH * WIDTH + 2 * WIDTH) * 4


def test_module_buffers_are_buffers(ledger, records):
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES))
    train(ledger, model, torch.optim.SGD(model.parameters()), steps=2)
    assert records[0].current.buffers == 2 * WIDTH * 4 + 8


def test_a_wrapped_optimizer_is_read_through(ledger, records):
    model, inner = build()

    class Sharded(torch.optim.Optimizer):  # ZeroRedundancyOptimizer's shape
        def __init__(self):
            super().__init__(model.parameters(), {})
            self.optim = inner

        def step(self):
            self.optim.step()

    train(ledger, model, Sharded(), steps=2)
    count = len(list(model.parameters()))
    assert records[0].peak.optimizer == 2 * bytes_of(model.parameters()) + 4 * count


# -- the peak ----------------------------------------------------------------------------------


@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_peak_is_the_allocators(ledger, records, set_to_none):
    def step(model, optimizer):
        inputs, targets = torch.randn(BATCH, WIDTH), torch.randint(CLASSES, (BATCH,))
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()

    with allocator() as profiler:
        model, optimizer = build()
        train(ledger, model, optimizer, steps=3, step=step)
    truth = allocator_peaks(profiler)
    for record in records:
        assert record.peak_bytes == pytest.approx(truth[record.step], rel=0.01)


def test_the_peak_of_attention_and_accumulation_is_the_allocators(ledger, records):
    def step(model, optimizer):
        optimizer.zero_grad()
        for _ in range(2):
            model(torch.randn(4, 32, 64)).square().mean().backward()
        optimizer.step()

    with allocator() as profiler:
        model = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        train(ledger, model, torch.optim.Adam(model.parameters()), steps=3, step=step)
    truth = allocator_peaks(profiler)
    for record in records:
        assert record.peak_bytes == pytest.approx(truth[record.step], rel=0.01)


def settle(thread):
    """Waits until the thread drops its last job's arguments, soon after its result."""
    thread.submit(int).result()


class Replicated:
    """Like DataParallel: a replica and a thread per device, gradients summed on device 0."""

    def __init__(self, ledger, devices, owned=True):
        self.ledger, self.owned, self.in_turn = ledger, owned, False
        self.shells = [build()[0] for _ in range(devices - 1)]
        self.threads = [ThreadPoolExecutor(1) for _ in self.shells]

    def device(self, index):
        return index if self.owned else 0

    def __call__(self, model, optimizer):
        optimizer.zero_grad()
        jobs = []
        for index, thread in enumerate(self.threads, start=1):
            with self.ledger.owner(self.device(index)):
                replica = {
                    name: nn.Parameter(value.detach().clone())
                    for name, value in model.named_parameters()
                }
                inputs = torch.randn(BATCH, WIDTH)
            if thread is None:
                self.work(index, replica, inputs)
                jobs.append((replica, None))
            else:
                jobs.append((replica, thread.submit(self.work, index, replica, inputs)))
            if self.in_turn:
                settle(thread)
            del inputs
        model(torch.randn(BATCH, WIDTH)).sum().backward()
        for replica, job in jobs:
            if job is not None:
                job.result()
            for own, theirs in zip(model.parameters(), replica.values(), strict=True):
                own.grad.add_(theirs.grad.clone())
        for thread in self.threads:
            if thread is not None:
                settle(thread)
        optimizer.step()

    def work(self, index, replica, inputs):
        self.ledger.enter_lane(self.device(index))
        try:
            shell = self.shells[index - 1]
            torch.func.functional_call(shell, replica, (inputs,)).sum().backward()
        finally:
            self.ledger.exit_lane()

    def close(self):
        for thread in self.threads:
            thread.shutdown()


def test_every_device_of_a_dp_process_has_its_own_figures(records):
    ledger = Ledger(lambda record: records.append(Memory(*record[1:])), devices=3)
    model, optimizer = build()
    work = Replicated(ledger, devices=3)
    work.shells = [shell.to("meta") for shell in work.shells]
    train(ledger, model, optimizer, steps=3, step=work)
    work.close()
    ledger.close()
    params, count = bytes_of(model.parameters()), len(list(model.parameters()))
    assert [(record.step, record.device) for record in records] == [
        (step, device) for step in (1, 2) for device in range(3)
    ]
    for record in records:
        assert record.peak.params == params
        assert sum(getattr(record.peak, name) for name in CATEGORIES) == record.peak_bytes
        if record.device == 0:
            assert record.peak.grads == params
            assert record.peak.optimizer == 2 * params + 4 * count
        else:
            assert 0 < record.peak.grads <= params
            assert record.peak.activations > 0
            assert record.peak.optimizer == 0
    # Replicas die with the step's locals; only a replica's gradient can be lost from sight.
    assert all(record.current.params == 0 for record in records if record.device)


def test_the_peak_across_threads_is_the_allocators(ledger, records):
    """The profiler sees one thread: the reference is the same work, in the same order, in one."""
    model, optimizer = build()
    work = Replicated(ledger, devices=3, owned=False)
    work.in_turn = True
    shells = sum(bytes_of(shell.parameters()) for shell in work.shells)
    train(ledger, model, optimizer, steps=3, step=work)
    work.close()
    with allocator() as profiler:
        idle = Ledger(lambda record: None)
        again = build()  # and the first stays: of older frees the profiler knows no sizes for sure
        alone = Replicated(idle, devices=3, owned=False)
        alone.threads = [None, None]
        for number in range(3):
            with record_function(f"step {number}"):
                alone(*again)
    truth = allocator_peaks(profiler)
    assert [record.step for record in records] == [1, 2]
    for record in records:
        assert record.peak_bytes + shells == pytest.approx(truth[record.step], rel=0.01)


def test_threads_that_allocate_at_once_add_up(records):
    """Two threads take turns by barrier: each device has its own peak, not the other's."""
    ledger = Ledger(lambda record: records.append(Memory(*record[1:])), devices=3)
    model, optimizer = build()
    barrier = Barrier(2)
    kib = 1 << 8  # float32 elements

    def first():
        ledger.enter_lane(1)
        kept = torch.zeros(100 * kib)
        barrier.wait()  # device 2 allocates now
        barrier.wait()
        more = torch.zeros(50 * kib)
        del kept, more
        kept = torch.zeros(10 * kib)
        ledger.exit_lane()
        return kept

    def second():
        ledger.enter_lane(2)
        barrier.wait()
        kept = [torch.zeros(30 * kib) for _ in range(3)]
        with ledger.owner(1):
            theirs = torch.zeros(7 * kib)
        barrier.wait()
        kept.pop()
        ledger.exit_lane()
        return kept, theirs

    def step(model, optimizer):
        one_step(model, optimizer)
        jobs = [threads.submit(first), threads.submit(second)]
        return [job.result() for job in jobs]

    with ThreadPoolExecutor(2) as threads:
        train(ledger, model, optimizer, steps=1)
        ledger.step_begin(1)
        held = step(model, optimizer)
        ledger.step_end(1, [optimizer], [model])
    ledger.close()
    by_device = {record.device: record for record in records}
    assert (by_device[1].peak_bytes, by_device[1].current_bytes) == (157 << 10, 17 << 10)
    assert (by_device[2].peak_bytes, by_device[2].current_bytes) == (90 << 10, 60 << 10)
    assert len(held) == 2


def test_resized_storages_are_tracked(ledger, records):
    """FSDP frees memory by resizing storages to 0."""

    def step(model, optimizer):
        big = torch.empty(1 << 20)
        big.untyped_storage().resize_(0)
        big.untyped_storage().resize_(3 << 20)
        big.resize_(1 << 20)
        del big
        one_step(model, optimizer)

    model, optimizer = build()
    train(ledger, model, optimizer, steps=2, step=step)
    held = sum(getattr(records[0].current, name) for name in ("params", "grads", "optimizer"))
    assert held < records[0].peak_bytes - (4 << 20) + bytes_of(model.parameters())
    assert records[0].peak_bytes >= 4 << 20
    assert records[0].current_bytes < held + (1 << 20)


# -- doing no harm -----------------------------------------------------------------------------


def test_losses_are_bit_identical(records):
    """Every step sampled, none sampled, no ledger: the same numbers."""

    class Never:
        def step_begin(self, step): ...
        def step_end(self, step, optimizers, models): ...

    def losses(ledger):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(64, 64), nn.TransformerEncoderLayer(64, 4, 128, batch_first=True),
        )  # fmt: skip

        def step(model, optimizer):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 16, 64)).square().mean()
            loss.backward()
            optimizer.step()
            return loss.item()

        return train(ledger, model, torch.optim.Adam(model.parameters()), steps=8, step=step)

    every = Ledger(records.append)
    every.pace.due = lambda step: True
    assert losses(every) == losses(Ledger(records.append)) == losses(Never())
    every.close()
    assert len(records) > 7


def test_the_users_own_mode_is_left_alone(ledger, records):
    class Mine(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += 1
            return func(*args, **(kwargs or {}))

    model, optimizer = build()
    with Mine() as mine:
        train(ledger, model, optimizer, steps=3)
        assert _get_current_dispatch_mode_stack() == [mine]
    assert records == []  # not above it …
    assert mine.seen
    train(ledger, model, optimizer, steps=2, first=3)
    assert [record.step for record in records] == [4]  # … but soon after it


def test_a_step_boundary_inside_a_users_mode_leaves_ours_below(ledger, records):
    class Mine(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    model, optimizer = build()
    train(ledger, model, optimizer, steps=1)
    ledger.step_begin(1)
    with Mine() as mine:
        one_step(model, optimizer)
        ledger.step_end(1, [optimizer], [model])
        assert _get_current_dispatch_mode_stack()[-1] is mine
        train(ledger, model, optimizer, steps=1, first=2)
    assert [record.step for record in records] == [1]
    train(ledger, model, optimizer, steps=2, first=3)
    assert [record.step for record in records] == [1, 4]


def test_with_a_permanent_user_mode_memory_is_passive(records):
    class Mine(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    ledger, walks = Ledger(lambda record: records.append(Memory(*record[1:]))), []
    ledger._adopt = lambda *args: walks.append(args)
    with Mine():
        train(ledger, *build(), steps=ledger_module.MOST_MISSED + 10)
    ledger.close()
    assert walks == []
    assert {record.source for record in records} == {"rss"}


def test_an_error_of_the_users_passes_through_and_changes_nothing(ledger, records):
    model, optimizer = build()
    train(ledger, model, optimizer, steps=1)
    ledger.step_begin(1)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        model(torch.randn(3, 7))
    one_step(model, optimizer)
    ledger.step_end(1, [optimizer], [model])
    assert [record.step for record in records] == [1]


def test_an_error_of_its_own_turns_the_ledger_off(ledger, records, monkeypatch):
    model, optimizer = build()
    train(ledger, model, optimizer, steps=1)

    def fails(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(ledger._tracker, "see", fails)
    train(ledger, model, optimizer, steps=10, first=1)
    assert ledger.note == "ZeroDivisionError: ours"
    assert {record.source for record in records} == {"rss"}


def test_an_untrackable_tensor_turns_the_ledger_off(ledger, records):
    model, optimizer = build()

    def step(model, optimizer):
        torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (4,), check_invariants=False)
        return one_step(model, optimizer)

    train(ledger, model, optimizer, steps=11, step=step)
    assert ledger.note
    assert records
    assert {record.source for record in records} == {"rss"}


def test_compiled_code_turns_the_ledger_off(ledger, records, monkeypatch):
    monkeypatch.setattr(ledger_module, "compile_in_use", lambda: True)
    model, optimizer = build()
    train(ledger, model, optimizer, steps=11)
    assert "torch.compile" in ledger.note
    params = bytes_of(model.parameters())
    for record in records:
        assert record.source == "rss"
        assert record.current.params == record.current.grads == params
        assert record.peak.grads is record.peak.activations is record.current.temp is None
        assert record.peak_bytes >= record.current_bytes > params


def test_resident_memory_is_not_reported_for_virtual_devices(records, monkeypatch):
    monkeypatch.setattr(ledger_module, "compile_in_use", lambda: True)
    devices = [DeviceInfo(f"vgpu:{index}", "virtual") for index in range(2)]
    ledger = ledger_module.start(records.append, devices)
    train(ledger, *build(), steps=11)
    assert records == []


class Wrapper(torch.Tensor):
    """Like a DTensor: it unwraps itself, and the plain tensors inside come back."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return cls(func(*(arg.inner if isinstance(arg, cls) else arg for arg in args)))


def with_wrapper():
    wrapped = Wrapper(torch.ones(1 << 20)) * 2
    assert wrapped.inner[0] == 2


def test_distributed_tensors_are_unwrapped(ledger, records, monkeypatch):
    monkeypatch.setattr(Wrapper, "__module__", "torch.distributed.tensor._api")

    def step(model, optimizer):
        with_wrapper()
        return one_step(model, optimizer)

    train(ledger, *build(), steps=2, step=step)
    assert ledger.note == ""
    assert records[0].peak_bytes >= 8 << 20


# -- standing aside ------------------------------------------------------------------------------


def with_complex():
    torch.linalg.pinv(torch.randn(6, 4, dtype=torch.complex64))


def with_transform():
    torch.func.grad(lambda x: x.square().sum())(torch.ones(3))


@pytest.mark.parametrize(
    ("meets", "why"),
    [(with_wrapper, "subclasses"), (with_complex, "complex"), (with_transform, "functorch")],
)
def test_the_ledger_turns_off_for_what_modes_are_known_to_harm(meets, why, records):
    """From the next forward or backward on, and for good."""
    ledger = Ledger(lambda record: records.append(Memory(*record[1:])))
    model, optimizer = build()
    stacks = []

    def step(model, optimizer):
        meets()
        ledger.before_forward()
        stacks.append(_get_current_dispatch_mode_stack())
        return one_step(model, optimizer)

    train(ledger, model, optimizer, steps=12, step=step)
    ledger.close()
    assert stacks == [[]] * 12
    assert why in ledger.note
    assert records
    assert {record.source for record in records} == {"rss"}


@pytest.mark.parametrize("at", [1, 2])
def test_a_first_compile_in_a_sampled_step_is_unaffected(at, records):
    """Steps 1 and 2 are sampled: the mode must be gone before dynamo checks."""
    ledger = Ledger(lambda record: records.append(Memory(*record[1:])))
    model, optimizer = build()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def step(model, optimizer):
        steps.append(None)
        if len(steps) > at:
            double = torch.compile(lambda x: x * 2 + 1, backend=count, fullgraph=True)
            assert torch.equal(double(torch.ones(3)), torch.full((3,), 3.0))
        return one_step(model, optimizer)

    steps, own = [], vars(eval_frame._TorchDynamoContext)["__init__"]
    try:
        train(ledger, model, optimizer, steps=5, step=step)
        assert "torch.compile" in ledger.note
        assert len(graphs) == 1
        assert vars(eval_frame._TorchDynamoContext)["__init__"] is own
    finally:
        ledger.close()
        torch._dynamo.reset()


def test_a_callable_that_has_not_compiled_yet_is_detected(records):
    ledger = Ledger(lambda record: records.append(Memory(*record[1:])))
    model, optimizer = build()
    later = torch.compile(lambda x: x + 1, backend="eager")
    try:
        train(ledger, model, optimizer, steps=3)
        assert "torch.compile" in ledger.note
        assert torch.equal(later(torch.ones(2)), torch.full((2,), 2.0))
    finally:
        ledger.close()
        torch._dynamo.reset()


def test_models_and_optimizers_are_not_kept_alive(ledger):
    model, optimizer = build()
    train(ledger, model, optimizer, steps=3)
    alive = [weakref.ref(model), weakref.ref(optimizer), weakref.ref(model[0].weight)]
    del model, optimizer
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_worker_tracks_nothing(ledger, records):
    model, optimizer = build()
    train(ledger, model, optimizer, steps=1)
    ledger.step_begin(1)
    child = os.fork()
    if child == 0:
        quiet = not ledger._tracker.active and _get_current_dispatch_mode_stack() == []
        os._exit(0 if quiet else 1)
    assert os.waitpid(child, 0)[1] == 0
    one_step(model, optimizer)
    ledger.step_end(1, [optimizer], [model])
    assert [record.step for record in records] == [1]


def test_jobs_nest_and_restore_the_device(ledger):
    lane = ledger._tracker.lane
    with ledger.owner(2):
        ledger.enter_lane(1)
        with ledger.owner(3):
            assert lane.device == 3
        assert lane.device == 1
        ledger.exit_lane()
        assert lane.device == 2
    assert lane.device == 0
