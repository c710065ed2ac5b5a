"""One rank of the ledger's sharding tests: figures of the ledger, the allocator and theory."""

import dataclasses
import sys
import warnings

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from dpwatch.plan.schemes import scheme
from dpwatch.probe.api import NullProbe
from dpwatch.probe.collectives import observer as collectives
from dpwatch.probe.memory.ledger import Ledger
from dpwatch.probe.steps.models import elements_of
from dpwatch.trainer.config import TrainConfig
from dpwatch.trainer.data import loader
from dpwatch.trainer.footprint import setup
from dpwatch.trainer.rank_place import RankPlace
from dpwatch.trainer.strategies import build
from dpwatch.wire.messages import ByCategory, Memory
from tests.allocator import rises
from tests.reports import report

STEPS = 5
SIZES = {"d_model": 40, "layers": 4, "heads": 2, "seq_len": 32, "batch_per_gpu": 2}
CASES = {
    "fsdp": {"strategy": "fsdp"},
    "fsdp kept": {"strategy": "fsdp", "reshard_after_forward": False},
    "fsdp bf16": {"strategy": "fsdp", "precision": "bf16-mixed"},
    "zero2": {"strategy": "zero2"},
    "zero2 accumulates": {"strategy": "zero2", "grad_accum": 2},
    "fsdp1": {"strategy": "fsdp1"},
    "fsdp1 bf16 by hand": {"strategy": "fsdp1", "precision": "bf16-mixed", "wrap": "manual"},
}


def train(config, place, ledger):
    """Trains while the ledger tracks every step but the first. Returns: the model's elements."""
    strategy = build(config, place, NullProbe())
    module, optimizer = strategy.wrapped, strategy.optimizer
    for step, tokens in enumerate(loader(config, rank=place.rank, ranks=place.world_size)):
        ledger.step_begin(step)
        with record_function(f"step {step}"):
            strategy.step(tokens)
        ledger.step_end(step, [optimizer], [module])
    return sum(elements_of(parameter) for parameter in module.parameters())


def case(config, place):
    records = []
    ledger = Ledger(lambda record: records.append(Memory(*record[1:])))
    ledger.pace.due = lambda step: step > 0
    observer = collectives.start(lambda record: None, lambda: 0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        elements = train(config, place, ledger)
    ledger.close()
    observer.close()
    names = ByCategory.__struct_fields__
    held = scheme(config.strategy).held(setup(config))[place.rank]
    risen = rises(profiler)
    return {
        "note": ledger.note,
        "elements": elements,
        "planned": dataclasses.asdict(held),
        "rises": [risen[f"step {step}"] for step in range(STEPS)],
        "records": [
            {"step": record.step, "peak_bytes": record.peak_bytes,
             "peak": {name: getattr(record.peak, name) for name in names},
             "current": {name: getattr(record.current, name) for name in names}}
            for record in records
        ],
    }  # fmt: skip


def main():
    store, world, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    place = RankPlace(rank=rank, world_size=world, devices=(torch.device("cpu"),), virtual=True)
    found = {}
    for name, changes in CASES.items():
        config = TrainConfig(gpus=world, steps=STEPS, **{**SIZES, **changes})
        found[name] = case(config, place)
    dist.destroy_process_group()
    report(found)


if __name__ == "__main__":
    main()
