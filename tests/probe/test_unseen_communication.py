"""Communication outside torch.distributed's groups is reported as unobserved."""

import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from dpwatch.probe.collectives import observer as collectives


@pytest.fixture
def observed():
    rows = []
    observer = collectives.start(rows.append, lambda: 0)
    observer.rows = rows
    yield observer
    observer.close()


def test_nothing_is_unobserved_by_default(observed):
    assert observed.unseen() == ""


@pytest.mark.parametrize("module", ["torchft", "horovod.torch"])
def test_libraries_with_their_own_groups_are_reported(observed, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, SimpleNamespace())
    assert observed.unseen() == module.partition(".")[0]


@pytest.mark.parametrize(("is_set", "told"), [(True, "torch.distributed.rpc"), (False, "")])
def test_rpc_with_an_agent_is_reported(observed, monkeypatch, is_set, told):
    api = SimpleNamespace(_is_current_rpc_agent_set=lambda: is_set)
    monkeypatch.setitem(sys.modules, "torch.distributed.rpc.api", api)
    assert observed.unseen() == told
    api._is_current_rpc_agent_set = lambda: False
    assert observed.unseen() == told  # it was there


def test_another_torchs_rpc_is_tolerated(observed, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed.rpc.api", SimpleNamespace())
    assert observed.unseen() == ""


def test_a_process_group_not_created_by_torch_distributed_is_reported(observed):
    kind = dist.ProcessGroup.BackendType.GLOO
    store = dist.HashStore()
    group = dist.ProcessGroup(store, 0, 1)
    backend = dist.ProcessGroupGloo(dist.PrefixStore("mine/", store), 0, 1, timedelta(seconds=30))
    group._set_default_backend(kind)
    group._register_backend(torch.device("cpu"), kind, backend)
    group._set_group_name("mine")
    group.allreduce([torch.ones(2)]).wait()
    assert observed.rows == []
    assert observed.unseen() == "process groups that torch.distributed did not make"
