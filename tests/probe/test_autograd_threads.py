"""Calls that autograd's own threads issue (as on CUDA) belong to the training thread's phase."""

import threading
import time

import pytest
import torch
import torch.distributed as dist

from dpwatch.probe.collectives import observer as collectives
from dpwatch.probe.instruments import NoCollectives
from dpwatch.probe.steps.lanes import BACKWARD
from dpwatch.probe.steps.thread_clock import Clocks
from dpwatch.probe.steps.tracker import Steps


@pytest.fixture
def world():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def on_a_thread_of_its_own(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_collective_of_autograds_thread_is_in_the_main_threads_backward(world):
    records = []
    observer = collectives.start(records.append, lambda: 3)
    steps = Steps(
        records.append, NoCollectives(), devices=[], clocks=Clocks(), on_devices=lambda _: None
    )
    observer.main = lane = steps.main
    lane.phase, lane.phase_start = BACKWARD, time.monotonic_ns() - 5_000_000
    try:
        x = torch.ones(2, requires_grad=True)
        y = (x * 2).sum()
        x.register_hook(lambda gradient: dist.all_reduce(gradient.clone()))
        on_a_thread_of_its_own(y.backward)
        on_a_thread_of_its_own(lambda: dist.all_reduce(torch.ones(2)))
    finally:
        observer.close()
    inside, outside = (tell(call) for tell, call in records)
    assert (inside.phase, outside.phase) == ("backward", "")
    assert inside.into_ns >= 5_000_000
    assert outside.into_ns is None
