"""Which threads train, whichever thread started the probe."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dpwatch.wire.messages import Hello, Step


def train(steps, width=1):
    model = nn.Linear(3, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(steps):
        model(torch.ones(2, 3)).mean().backward()
        optimizer.step()


def in_threads(*works):
    failed = []

    def guarded(work):
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), name=f"t{i}") for i, work in
               enumerate(works)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_the_thread_that_calls_backward_is_the_one_that_trains(rig):
    in_threads(lambda: train(4))
    steps = rig.records(Step)
    assert [(s.device, s.step) for s in steps] == [(0, n) for n in range(4)]
    # Of the first step only what came after its first backward had begun is known.
    assert [s.samples for s in steps] == [None, 2, 2, 2]
    assert rig.link.records(Hello)[-1].params == 4


def test_the_starting_thread_may_train_later(rig):
    in_threads(lambda: train(3))
    train(3)
    steps = rig.records(Step)
    assert [(s.device, s.step) for s in steps if s.device == 0] == [(0, n) for n in range(3)]
    assert [s.step for s in steps if s.device == 1] == [0, 1, 2]


def test_two_training_threads_have_separate_lanes(rig):
    train(1)  # this one, and so the process's device is known
    begin = threading.Barrier(3)

    def work(steps, width):
        begin.wait()
        train(steps, width)

    in_threads(lambda: work(5, 1), lambda: work(7, 2), lambda: (begin.wait(), train(0)))
    steps = rig.records(Step)
    told = {device: len([s for s in steps if s.device == device]) for device in (0, 1, 2)}
    assert told == {0: 1, 1: 5, 2: 7} or told == {0: 1, 1: 7, 2: 5}
    names = [device.name for device in rig.link.records(Hello)[-1].devices]
    assert names[0] == "cpu"
    assert sorted(names[1:]) == ["cpu (t0)", "cpu (t1)"]


def test_a_thread_that_only_calls_models_is_not_tracked(rig):
    model = nn.Linear(3, 1)
    in_threads(lambda: model(torch.ones(2, 3)))
    train(2)
    assert [(s.device, s.step) for s in rig.records(Step)] == [(0, 0), (0, 1)]


def test_backward_within_backward_makes_no_lane(rig):
    block = nn.Linear(3, 3)
    x = torch.ones(2, 3, requires_grad=True)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.0)
    for _ in range(2):
        checkpoint(block, x, use_reentrant=True).sum().backward()
        optimizer.step()
    assert [(s.device, s.step) for s in rig.records(Step)] == [(0, 0), (0, 1)]


@pytest.mark.parametrize("steps", [3])
def test_after_close_no_thread_is_tracked(rig, steps):
    rig.probe.close()
    in_threads(lambda: train(steps))
    assert rig.records(Step) == []
