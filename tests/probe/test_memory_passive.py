"""Memory of a script's own devices: what is recorded, when, and at what cost."""

import signal
import time

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from dpwatch.probe.instruments import LedgerLike
from dpwatch.probe.memory import ledger as ledger_module
from dpwatch.probe.memory.ledger import Ledger, choice, start
from dpwatch.probe.memory.passive import FirstStep, PassiveMemory
from dpwatch.wire.messages import DeviceInfo, Memory

HOST = [DeviceInfo("cpu", "cpu")]
WIDTH = 64


@pytest.fixture
def records():
    return []


@pytest.fixture
def memory(records):
    memory = PassiveMemory(lambda record: records.append(Memory(*record[1:])), HOST)
    yield memory
    memory.close()


def build(layers=2):
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(layers)])
    return model, torch.optim.Adam(model.parameters())


def train(memory, model, optimizer, steps, first=0):
    for number in range(first, first + steps):
        memory.step_begin(number)
        optimizer.zero_grad()
        memory.before_forward()
        loss = model(torch.randn(16, WIDTH)).square().mean()
        memory.before_backward()
        loss.backward()
        optimizer.step()
        memory.step_end(number, [optimizer], [model])


# -- which instrument --------------------------------------------------------------------------


def test_a_scripts_own_devices_are_measured_passively():
    assert type(start(print, HOST)) is PassiveMemory
    assert type(start(print, [DeviceInfo("cuda:0", "cuda")], "exact")) is PassiveMemory
    assert type(start(print, [DeviceInfo("vgpu:0", "virtual")])) is Ledger
    assert type(start(print, [])) is FirstStep


def test_requesting_exact_prints_what_it_may_change(capsys, monkeypatch):
    assert type(start(print, HOST, "exact")) is Ledger
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("dpwatch: memory=exact")
    assert "prod" in said
    monkeypatch.setenv("LOCAL_RANK", "1")  # one of a host's ranks says it
    start(print, HOST, "exact")
    assert capsys.readouterr().err == ""


def test_the_scripts_choice_precedes_the_environments(monkeypatch, capsys):
    assert choice() == "passive"
    monkeypatch.setenv("DPWATCH_MEMORY", "exact")
    assert choice() == "exact"
    assert choice("passive") == "passive"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("asked", [None, "Exact"])
def test_an_invalid_memory_mode_is_reported_in_one_line(asked, monkeypatch, capsys):
    monkeypatch.setenv("DPWATCH_MEMORY", "sloppy")
    assert choice(asked) == "passive"
    (said,) = capsys.readouterr().err.splitlines()
    assert (asked or "DPWATCH_MEMORY='sloppy'") in said
    assert "passive or exact" in said


# -- what is recorded --------------------------------------------------------------------------


def test_a_sampled_step_is_recorded_completely(memory, records):
    model, optimizer = build()
    params = sum(p.nbytes for p in model.parameters())
    train(memory, model, optimizer, steps=2)
    record = records[0]
    assert (record.device, record.step, record.source) == (0, 1, "rss")
    now, peak = record.current, record.peak
    assert (now.params, now.grads, now.optimizer) == (params, params, 2 * params + 4 * 4)
    assert (peak.params, peak.grads, peak.optimizer) == (params, None, 2 * params + 4 * 4)
    assert now.activations is now.temp is now.gathered is None
    assert record.peak_bytes >= record.current_bytes > record.heap_bytes > params
    assert record.activations_estimate is not None


def test_the_first_step_gives_the_estimate_its_error(records):
    first = start(records.append, [])
    model, optimizer = build()
    train(first, model, optimizer, steps=1)
    memory = start(lambda r: records.append(Memory(*r[1:])), HOST, before=first)
    train(memory, model, optimizer, steps=1, first=1)
    (record,) = records
    assert record.activations_error is not None
    unbounded = PassiveMemory(lambda r: records.append(Memory(*r[1:])), HOST)
    train(unbounded, model, optimizer, steps=1, first=5)
    assert records[-1].activations_error is None


def test_devices_that_share_host_memory_get_no_records(records):
    memory = PassiveMemory(records.append, HOST * 2)
    train(memory, *build(), steps=3)
    assert records == []


# -- cost --------------------------------------------------------------------------------------


def test_ten_thousand_parameters_are_walked_rarely(records):
    """On manual clocks: a step takes 20 ms, the walk as long as it really takes."""
    model = nn.Module()
    for at in range(10_000):
        model.register_parameter(f"p{at}", nn.Parameter(torch.zeros(2)))
    optimizer = torch.optim.Adam(model.parameters(), foreach=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros(2)
    optimizer.step()
    skipped = [0]
    memory = PassiveMemory(
        lambda r: records.append(Memory(*r[1:])), HOST,
        clock_ns=lambda: time.perf_counter_ns() + skipped[0],
    )  # fmt: skip
    spent = []
    look, began = memory._scan, time.perf_counter_ns()
    memory._scan = lambda *args: spent.append(timed(look, *args))
    for step in range(500):
        memory.step_begin(step)
        skipped[0] += 20_000_000
        memory.step_end(step, [optimizer], [model])
    whole = time.perf_counter_ns() + skipped[0] - began
    assert sum(spent[1:]) <= 0.006 * whole
    assert records[0].current.optimizer == 10_000 * (2 * 8 + 4)


def timed(work, *args):
    began = time.perf_counter_ns()
    work(*args)
    return time.perf_counter_ns() - began


def test_a_mode_of_the_scripts_does_not_add_walks(memory):
    class Mine(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    walks = []
    look = memory._scan
    memory._scan = lambda *args: (walks.append(args[0]), look(*args))
    with Mine():
        train(memory, *build(layers=40), steps=60)
    assert walks[0] == 1
    assert len(walks) <= 12


# -- never into training -----------------------------------------------------------------------


def test_passive_memory_installs_no_dispatch_mode(memory):
    stacks = []
    model, optimizer = build()
    model[0].register_forward_hook(
        lambda *_: stacks.append(len(_get_current_dispatch_mode_stack()))
    )
    memory.pace.due = lambda step: True
    train(memory, model, optimizer, steps=4)
    assert stacks == [0] * 4


def test_an_error_of_its_own_ends_it_quietly(memory, records, monkeypatch):
    monkeypatch.setattr(memory._rise, "before_forward", lambda: 1 // 0)
    train(memory, *build(), steps=12)
    assert memory.note == "ZeroDivisionError: integer division or modulo by zero"
    assert records == []


class Deadline(Exception):
    """A time limit of the script's own."""


@pytest.fixture
def interrupt():
    """Replaces a part of the probe by a function in which a signal arrives."""

    def give_up(*_):
        raise Deadline

    before = signal.signal(signal.SIGUSR1, give_up)
    yield lambda *_: signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def first_step(record):
    memory = FirstStep()
    memory.before_forward()
    return memory


def passive(record):
    return PassiveMemory(record, HOST)


@pytest.mark.parametrize(
    ("make", "part", "name"),
    [
        (first_step, "_rise", "before_forward"),
        (first_step, "_rise", "before_backward"),
        (passive, "_rise", "before_forward"),
        (passive, "_rise", "before_backward"),
        (passive, "", "_scan"),
        (Ledger, "", "_scan"),
        (Ledger, "_tracker", "see"),
    ],
)
def test_foreign_exceptions_pass_through(make, part, name, monkeypatch, records, interrupt):
    memory = make(records.append)
    monkeypatch.setattr(getattr(memory, part) if part else memory, name, interrupt)
    with pytest.raises(Deadline):
        train(memory, *build(), steps=3)
    memory.close()


def test_passive_memory_implements_the_interface():
    for kind in (FirstStep, PassiveMemory, Ledger):
        for name, member in vars(LedgerLike).items():
            if callable(member) and not name.startswith("_"):
                assert callable(getattr(kind, name))
    assert ledger_module.CHOICES == ("passive", "exact")
