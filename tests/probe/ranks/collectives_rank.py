"""One rank of the collectives tests: runs every case and prints what was recorded as JSON."""

import json
import sys
import warnings

import torch
import torch.distributed as dist
from msgspec.structs import asdict
from torch import nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dpwatch.probe import collectives
from dpwatch.wire.messages import Collective

WIDTH, LAYERS, STEPS = 256, 4, 6


class Observed:
    """An observer, its records and the step it is told."""

    def __init__(self):
        self.records, self.step = [], 0

    def __enter__(self):
        self.observer = collectives.start(
            lambda record: self.records.append(record[0](*record[1:])), lambda: self.step
        )
        return self

    def __exit__(self, *_):
        self.observer.close()

    def table(self):
        names = Collective.__struct_fields__
        rows = [{name: getattr(record, name) for name in names} for record in self.records]
        return sorted(rows, key=lambda row: (row["group"], row["seq"]))


def patched_state():
    state = {name: value for name, value in vars(dist.ProcessGroup).items() if "__" not in name}
    return state | {"Work.wait": dist.Work.wait}


def single_ops(rank):
    tensor = torch.ones(4)
    parts = [torch.zeros(4) for _ in range(2)]
    dist.all_reduce(tensor)
    dist.broadcast(tensor, 0)
    dist.all_gather(parts, tensor)
    dist.all_gather_into_tensor(torch.zeros(8), tensor)
    dist.reduce_scatter(torch.zeros(4), parts)
    dist.reduce_scatter_tensor(torch.zeros(4), torch.zeros(8))
    dist.all_to_all_single(torch.zeros(4), tensor)
    dist.reduce(tensor, 0)
    dist.gather(tensor, parts if rank == 0 else None, 0)
    dist.scatter(tensor, parts if rank == 0 else None, 0)
    dist.send(tensor, 1) if rank == 0 else dist.recv(tensor, 0)
    dist.barrier()
    dist.monitored_barrier()
    functional.wait_tensor(functional.all_reduce(tensor.double(), "sum", dist.group.WORLD))


def asynchronous(rank):
    pair, twin = dist.new_group([0, 1]), dist.new_group([0, 1])
    work = dist.all_reduce(torch.ones(2), group=pair, async_op=True)
    work.wait()
    dist.all_reduce(torch.ones(2), group=twin, async_op=True)  # nobody waits for it
    dist.barrier(group=twin)


def network():
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])


def train(model, rank, observed=None):
    optimizer = torch.optim.Adam(model.parameters())
    torch.manual_seed(rank)
    losses = []
    for step in range(STEPS):
        if observed:
            observed.step = step
        optimizer.zero_grad()
        loss = model(torch.randn(8, WIDTH)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item().hex())
    return losses


def ddp():
    return DistributedDataParallel(network(), bucket_cap_mb=0.5)


def sharded():
    model = network()
    for layer in model:
        fully_shard(layer)
    return fully_shard(model)


def over_and_over():
    """A hundred times install, collective, close."""
    tensor, seen = torch.ones(1), 0
    for _ in range(100):
        with Observed() as observed:
            work = dist.all_reduce(tensor, async_op=True)
            dist.all_reduce(tensor)
            work.wait()
            functional.wait_tensor(functional.all_reduce(tensor, "sum", dist.group.WORLD))
        seen += len(observed.records)
    return seen


def without_observer():
    """What an older torch gives: Python callers only."""

    def missing(*_):
        raise AttributeError("no such thing here")

    original, torch.library.Library = torch.library.Library, missing
    try:
        with Observed() as observed:
            dist.all_reduce(torch.ones(4))
            dist.all_gather([torch.zeros(4), torch.zeros(4)], torch.ones(4))
            return {"capture": observed.observer.capture, "records": observed.table()}
    finally:
        torch.library.Library = original


def main():
    store, world, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    before, report = patched_state(), {}
    for name, case in {"single": single_ops, "asynchronous": asynchronous}.items():
        with Observed() as observed:
            case(rank)
            report[name] = {"issued": observed.observer.issued,
                            "positions": [asdict(each) for each in observed.observer.positions()],
                            "capture": observed.observer.capture}  # fmt: skip
        report[name]["records"] = observed.table()
    for name, build in {"ddp": ddp, "fsdp": sharded}.items():
        plain = train(build(), rank)
        with Observed() as observed:
            losses = train(build(), rank, observed)
        report[name] = {"same_losses": losses == plain, "records": observed.table(),
                        "grad_bytes": sum(p.nbytes for p in network().parameters())}  # fmt: skip
    report["over_and_over"] = over_and_over()
    report["without"] = without_observer()
    report["restored"] = patched_state() == before
    dist.destroy_process_group()
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
