"""One rank of the ledger's tests: DDP with ledger and profiler on; prints its figures as JSON."""

import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile, record_function

from dpwatch.probe.collectives import observer as collectives
from dpwatch.probe.memory.ddp import logged_bytes
from dpwatch.probe.memory.ledger import Ledger
from dpwatch.wire.messages import ByCategory, Memory
from tests.reports import report

WIDTH, LAYERS, STEPS = 256, 4, 5


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    return nn.Sequential(*layers, nn.BatchNorm1d(WIDTH))


def ddp(**kwargs):
    return DistributedDataParallel(network(), bucket_cap_mb=0.5, **kwargs)


def sharded(**kwargs):
    model = network()[:LAYERS]
    for layer in model:
        fully_shard(layer, **kwargs)
    return fully_shard(model, **kwargs)


def adam(model):
    return torch.optim.Adam(model.parameters())


def zero1(model):
    return ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam)


def train(ledger, build, optimizer_of, rank, late=False):
    """Trains from before the model exists; the ledger sees every step from 1 on, or from 4 on."""
    model = build()
    optimizer = optimizer_of(model)
    torch.manual_seed(rank)
    losses = []
    for step in range(STEPS):
        if ledger and not (late and step < STEPS - 2):
            ledger.step_begin(step)
        with record_function(f"step {step}"):
            optimizer.zero_grad()
            loss = model(torch.randn(32, WIDTH)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item().hex())
        if ledger and not (late and step < STEPS - 2):
            ledger.step_end(step, [optimizer], [model])
    seen = 0 if ledger is None else ledger._buckets.seen_bytes()
    params = sum(getattr(p, "_local_tensor", p).nbytes for p in model.parameters())
    return {"losses": losses, "bucket_bytes": [seen, logged_bytes([model])],
            "param_bytes": params, "params": len(list(model.parameters()))}  # fmt: skip


def allocator_rises(profiler):
    """Rise of each step's peak above its start, by the allocator's own events.

    Only differences within a step are used: the profiler does not see what gloo's worker thread
    frees between steps (a last reference to a flattened tensor).
    """
    events = list(profiler.profiler.kineto_results.events())
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    rises = {}
    for event in events:
        if event.name().startswith("step "):
            held = rise = 0
            for at_ns, delta in memory:
                if event.start_ns() <= at_ns <= event.end_ns():
                    held += delta
                    rise = max(rise, held)
            rises[event.name().removeprefix("step ")] = [rise, held]
    return rises


def case(build, optimizer_of, rank, late=False):
    """Figures of one training: the ledger's, the allocator's, and whether the losses are equal."""
    records = []
    ledger = Ledger(lambda record: records.append(Memory(*record[1:])))
    ledger.pace.due = lambda step: step > 0
    observer = collectives.start(lambda record: None, lambda: 0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        facts = train(ledger, build, optimizer_of, rank, late)
    ledger.close()
    observer.close()
    plain = train(None, build, optimizer_of, rank)
    facts["same_losses"] = plain.pop("losses") == facts.pop("losses")
    facts["note"] = ledger.note
    facts["allocator_rises"] = allocator_rises(profiler)
    names = ByCategory.__struct_fields__
    facts["records"] = [
        {"step": record.step, "peak_bytes": record.peak_bytes,
         "peak": {name: getattr(record.peak, name) for name in names},
         "current": {name: getattr(record.current, name) for name in names}}
        for record in records
    ]  # fmt: skip
    return facts


def main():
    store, world, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {
        "ddp": case(ddp, adam, rank),
        "late": case(ddp, adam, rank, late=True),
        "views": case(lambda: ddp(gradient_as_bucket_view=True), adam, rank),
        "zero1": case(ddp, zero1, rank),
        "fsdp": case(sharded, adam, rank),
        "fsdp_kept": case(lambda: sharded(reshard_after_forward=False), adam, rank),
    }
    dist.destroy_process_group()
    report(found)


if __name__ == "__main__":
    main()
