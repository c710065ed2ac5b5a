"""Exceptions of signal handlers during an observed collective reach the script intact."""

import ctypes
import gc
import operator
import signal
import sys
import traceback
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dpwatch.probe.collectives import calls as collectives_calls
from dpwatch.probe.collectives import groups as collectives_groups
from dpwatch.probe.collectives import observer as collectives
from dpwatch.probe.collectives.uninterrupted import raise_on_return, script_exception, uninterrupted

GO_OFF = partial(getattr(ctypes.CDLL(None), "raise"), int(signal.SIGUSR1))
"""Sends the signal without looking at signals itself, as other programs do."""


class TimeUp(Exception):
    pass


@pytest.fixture(autouse=True)
def handler():
    def handle(signum, frame):
        raise TimeUp("time is up", 7)

    before = signal.signal(signal.SIGUSR1, handle)
    yield
    signal.signal(signal.SIGUSR1, before)


LAST_GROUP = []


@pytest.fixture
def world():
    """A group that outlives its DDP models.

    A reducer that is the last to own a group ends the group's threads while it holds the GIL, and
    waits forever if one of them needs the GIL (torch 2.13, with and without an observer).
    """
    gc.collect()
    LAST_GROUP.clear()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    LAST_GROUP.append(dist.group.WORLD)
    yield
    dist.destroy_process_group()


@pytest.fixture
def observed(world):
    rows = []
    observer = collectives.start(rows.append, lambda: 0)
    observer.rows = rows
    yield observer
    observer.close()


def records(observer):
    return [made for row in observer.rows if (made := row[0](*row[1:])) is not None]


def interrupted_once(monkeypatch, owner, name):
    """The signal arrives when this is next called."""
    original, left = getattr(owner, name), [True]

    def wrapper(*args, **kwargs):
        if left:
            left.clear()
            signal.raise_signal(signal.SIGUSR1)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)


def native():
    ops = torch.ops._c10d_functional
    ops.wait_tensor(ops.all_reduce(torch.ones(2), "sum", dist.group.WORLD.group_name))


def python():
    dist.all_reduce(torch.ones(2))


PLACES = {
    "making the call": (collectives_calls.Call, "__init__"),
    "finding its group": (collectives_groups.Groups, "of"),
    "asking for its place": (collectives_calls, "issuer"),
}
AFTER = {
    "asking for its end": (collectives, "completion_of"),
    "finding its work": (collectives, "_work_in"),
}


@pytest.mark.parametrize("issue", [native, python])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupted_call_is_issued_and_counted_and_raises(observed, monkeypatch, issue, place):
    issue()
    interrupted_once(monkeypatch, *PLACES[place])
    with pytest.raises(TimeUp) as caught:
        issue()
    assert caught.value.args == ("time is up", 7)
    issue()
    told = records(observed)
    assert [(call.op, call.seq) for call in told] == [("all_reduce", seq) for seq in range(3)]
    assert observed._thread.inside is None


@pytest.mark.parametrize("place", AFTER)
def test_a_call_interrupted_after_issue_is_counted_and_raises(observed, monkeypatch, place):
    interrupted_once(monkeypatch, *AFTER[place])
    with pytest.raises(TimeUp):
        native()
    native()
    assert [call.seq for call in records(observed)] == [0, 1]
    observed.positions()
    assert not observed._reports._under_way  # the first will never be known to be over


def test_the_traceback_is_as_if_the_scripts_line_was_interrupted(observed, monkeypatch):
    interrupted_once(monkeypatch, *PLACES["making the call"])
    with pytest.raises(TimeUp) as caught:
        native()
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert not [frame for frame in frames if "/dpwatch/probe/" in frame.filename]
    if sys.version_info >= (3, 12):  # before, an exception's traceback begins anew
        assert frames[-1].name == "handle"


def test_ddp_goes_on_after_an_interrupt_in_its_backward(observed, monkeypatch):
    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), bucket_cap_mb=1
    )
    for _ in range(3):
        model(torch.ones(2, 8)).sum().backward()
    interrupted_once(monkeypatch, *PLACES["making the call"])
    with pytest.raises(TimeUp):
        model(torch.ones(2, 8)).sum().backward()
    for _ in range(3):
        model(torch.ones(2, 8)).sum().backward()
    seqs = [call.seq for call in records(observed)]
    assert seqs == list(range(len(seqs)))


def test_a_wait_that_is_interrupted_leaves_nothing_behind(observed, monkeypatch):
    work = dist.all_reduce(torch.ones(2), async_op=True)
    interrupted_once(monkeypatch, collectives_calls.Call, "waited")
    with pytest.raises(TimeUp):
        work.wait()
    work.wait()
    (told,) = records(observed)
    assert told.blocked_ns is None
    observed.positions()
    assert not observed._reports._under_way


def test_a_call_that_could_not_be_issued_does_not_count(observed):
    python()
    with pytest.raises(RuntimeError):
        dist.group.WORLD.allgather([[torch.zeros(3)]], [torch.ones(2)])
    python()
    assert [(call.op, call.seq) for call in records(observed)] == [
        ("all_reduce", 0), ("all_reduce", 1),
    ]  # fmt: skip


def test_a_function_called_from_c_is_not_interrupted_and_raises_after():
    done = []

    @uninterrupted
    def called(value):
        try:
            held = None
            done.append(value)  # looks at signals
        except TimeUp as error:
            held = script_exception(error)
        if held is not None:
            (_,) = raise_on_return(held)
        return value

    results = []
    with pytest.raises(TimeUp, match="time is up"):
        # All of it in C: the signal comes, and then the function is called three times.
        results.extend(
            map(operator.methodcaller("__call__"), [GO_OFF, *map(partial, [called] * 3, "abc")])
        )
    assert done == ["a", "b", "c"]
    assert results[1:] == ["a", "b", "c"]
