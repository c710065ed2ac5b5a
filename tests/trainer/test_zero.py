"""ZeRO inside one process: ownership of tensors, what is left after a step, and for how long."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function
from torch.testing._internal.distributed.fake_pg import FakeStore

from dpwatch.plan.partition import greedy_owners
from dpwatch.plan.schemes import scheme
from dpwatch.plan.setup import FLOAT_BYTES
from dpwatch.plan.zero import padded_units
from dpwatch.probe.memory.ledger import Ledger
from dpwatch.trainer.data import loader
from dpwatch.trainer.footprint import setup
from dpwatch.trainer.model import build_model
from dpwatch.trainer.rank_place import RankPlace
from dpwatch.trainer.strategies import build
from dpwatch.trainer.strategies.flat import lay_out
from dpwatch.trainer.strategies.zero1 import ZeroRedundancyOptimizer
from dpwatch.wire.messages import Memory
from tests.probe.ranks.sharded_rank import rises

from .support import tiny, trained_alone


@pytest.fixture
def group():
    """Makes this process one of that many ranks; the others do not exist."""

    def make(ranks, rank=0):
        alone = ranks == 1
        store = dist.HashStore() if alone else FakeStore()
        dist.init_process_group(
            "gloo" if alone else "fake", store=store, rank=rank, world_size=ranks
        )
        return RankPlace(rank=rank, world_size=ranks, devices=(torch.device("cpu"),), virtual=True)

    yield make
    dist.destroy_process_group()


def stepped(config, place, probe):
    """A strategy after its first step."""
    strategy = build(config, place, probe)
    strategy.step(next(iter(loader(config, rank=place.rank, ranks=place.world_size))))
    return strategy


def test_laid_out_tensors_keep_their_values_in_one_memory():
    tensors = [
        torch.nn.Parameter(torch.full(shape, float(n))) for n, shape in ((1, (2, 2)), (2, (3,)))
    ]
    flat = lay_out(tensors, multiple_of=4)
    assert flat.tolist() == [1, 1, 1, 1, 2, 2, 2, 0]
    flat.add_(1)
    assert [tensor.tolist() for tensor in tensors] == [[[2, 2], [2, 2]], [3, 3, 3]]
    assert {tensor.untyped_storage()._cdata for tensor in tensors} == {
        flat.untyped_storage()._cdata
    }


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_more_ranks_than_tensors(strategy, group, probe):
    """A model of 16 tensors: the last rank of 20 owns none, and its shards are mostly padding."""
    zero = stepped(tiny(strategy, gpus=20), group(20, 19), probe)
    zero.load(zero.state())
    held = scheme(strategy).held(setup(tiny(strategy, gpus=20)))[19]
    state = [tensor.nbytes for each in zero.optimizer.state.values() for tensor in each.values()]
    assert sum(state) == held.optimizer


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_torchs_partition_is_the_plans(ranks, group):
    group(ranks)
    parameters = list(build_model(tiny("zero1", layers=3)).parameters())
    torchs = ZeroRedundancyOptimizer(parameters, optimizer_class=torch.optim.SGD, lr=0.1)
    owners = greedy_owners([parameter.numel() for parameter in parameters], ranks)
    assert owners == tuple(torchs._param_to_rank[parameter] for parameter in parameters)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("grad_accum", [1, 2])
def test_zero2_leaves_gradients_only_with_their_owner(rank, grad_accum, group, probe):
    config = tiny("zero2", gpus=3, grad_accum=grad_accum)
    strategy = stepped(config, group(3, rank), probe)
    gradients = [p.grad for p in strategy.model.parameters() if p.grad is not None]
    held = scheme("zero2").held(setup(config))[rank]
    assert sum(gradient.nbytes for gradient in gradients) == held.grads
    storages = {g.untyped_storage()._cdata: g.untyped_storage().nbytes() for g in gradients}
    assert sum(storages.values()) == held.grads


@pytest.mark.parametrize("changes", [{}, {"grad_accum": 2}, {"activation_checkpointing": True}])
def test_zero3_leaves_only_shards(changes, group, probe):
    config = tiny("zero3", gpus=3, layers=3, **changes)
    strategy = stepped(config, group(3, 1), probe)
    held = scheme("zero3").held(setup(config))[1]
    assert all(p.untyped_storage().nbytes() == 0 for p in strategy.model.parameters())
    assert all(p.grad is None for p in strategy.model.parameters())
    assert sum(unit.shard.nbytes for unit in strategy._units) == held.params
    assert sum(unit.shard.grad.nbytes for unit in strategy._units) == held.grads


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
@pytest.mark.parametrize("changes", [{}, {"activation_checkpointing": True}])
def test_a_hundred_steps_are_bit_identical_to_one_device(strategy, changes, group, probe):
    """With one rank the order of additions is the same: freeing and gathering loses no bit."""
    config = tiny(strategy, gpus=1, steps=100, layers=2, **changes)
    with closing(build(config, group(1), probe)) as zero:
        losses = [zero.step(tokens).item() for tokens in loader(config, rank=0, ranks=1)]
        parameters = zero.parameters()
    expected_losses, expected = trained_alone(config)
    assert losses == expected_losses
    assert all(torch.equal(parameters[name], value) for name, value in expected.items())


@pytest.mark.parametrize("changes", [{}, {"activation_checkpointing": True}, {"grad_accum": 2}])
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_the_ledgers_peak_is_the_allocators(strategy, changes, group, probe):
    """Bytes held by theory, plus the rise within the step by the profiler's allocator events."""
    config = tiny(strategy, gpus=3, layers=4, d_model=64, **changes)
    place, records = group(3, 1), []
    ledger = Ledger(lambda record: records.append(Memory(*record[1:])))
    ledger.pace.due = lambda step: step > 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        zero = build(config, place, probe)
        for step, tokens in zip(range(4), loader(config, rank=1, ranks=3), strict=False):
            ledger.step_begin(step)
            with record_function(f"step {step}"):
                zero.step(tokens)
            ledger.step_end(step, [zero.optimizer], [zero.model])
    ledger.close()
    what = setup(config)
    held = scheme(strategy).held(what)[1]
    begins = held.params + held.grads + held.optimizer
    risen = rises(profiler)
    assert [record.step for record in records] == [1, 2, 3]
    for record in records[1:]:
        (least, most) = risen[f"step {record.step}"]
        assert least == most
        assert record.peak_bytes == pytest.approx(begins + most, rel=0.001)
        root, *blocks = padded_units(what)
        gathered = FLOAT_BYTES * (root + sum(blocks[:2])) if strategy == "zero3" else 0
        assert record.peak.gathered == gathered
