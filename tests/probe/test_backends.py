"""The backend is reported whoever chose it: torch, the script per device, or a custom one."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from dpwatch.probe.send.backend import backend_of_world


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (None, "gloo"),
        ("gloo", "gloo"),
        ("cpu:gloo,cuda:gloo", "gloo"),
        ("cpu:gloo", "gloo"),
        ("fake", "fake"),
    ],
)
def test_the_backend_of_a_real_process_group(asked, told):
    store = FakeStore() if asked == "fake" else dist.HashStore()
    dist.init_process_group(asked, store=store, rank=0, world_size=1)
    try:
        assert backend_of_world(dist) == told
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("config", "on_cuda", "told"),
    [
        ("cpu:gloo,cuda:nccl", False, "gloo"),
        ("cpu:gloo,cuda:nccl", True, "cpu:gloo,cuda:nccl"),
        ("cuda:nccl", False, "nccl"),
        ("cuda:nccl", True, "nccl"),
        ("cpu:mpi,cuda:mpi", True, "mpi"),
        ("cpu:gloo,cuda:ucc", True, "cpu:gloo,cuda:ucc"),
        ("npu:mine,cpu:gloo", False, "npu:mine,cpu:gloo"),
        ("", False, "mine"),
    ],
)
def test_of_several_backends_those_in_use_are_reported(monkeypatch, config, on_cuda, told):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_cuda)
    world = SimpleNamespace(get_backend=lambda: "mine", get_backend_config=lambda: config)
    assert backend_of_world(world) == told
