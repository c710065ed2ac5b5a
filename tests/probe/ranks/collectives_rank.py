"""One rank of the collectives tests: runs every case and prints what was recorded as JSON."""

import sys
import warnings

import torch
import torch.distributed as dist
from msgspec.structs import asdict
from torch import nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dpwatch.probe.collectives import observer as collectives
from dpwatch.wire.collectives import MESSAGES
from tests.reports import report

WIDTH, LAYERS, STEPS = 256, 4, 6


class Observed:
    """An observer, its records, and the current step."""

    def __init__(self):
        self.records, self.step = [], 0

    def __enter__(self):
        self.rows = []
        self.observer = collectives.start(self.rows.append, lambda: self.step)
        return self

    def __exit__(self, *_):
        self.observer.close()
        self.records = [made for row in self.rows if (made := row[0](*row[1:])) is not None]

    def table(self, messages=False):
        rows = [asdict(each) for each in self.records if (each.op in MESSAGES) is messages]
        return sorted(rows, key=lambda row: (row["group"], row["op"] * messages, row["seq"]))


def patched_state():
    owners = dist.ProcessGroup, dist.Work, torch._C.Future
    return [dict(vars(owner)) for owner in owners]


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
    dist.send(tensor, 1) if rank == 0 else dist.recv(tensor, 0)  # stands in no group's sequence
    dist.barrier()
    dist.monitored_barrier()
    functional.wait_tensor(functional.all_reduce(tensor.double(), "sum", dist.group.WORLD))


def asynchronous(rank):
    pair, twin = dist.new_group([0, 1]), dist.new_group([0, 1])
    work = dist.all_reduce(torch.ones(2), group=pair, async_op=True)
    work.wait()
    dist.all_reduce(torch.ones(2), group=twin, async_op=True)  # nobody waits for it
    dist.barrier(group=twin)


def messages(rank):
    """Every way to send and receive, also in a group with other rank numbers."""
    other, swapped = 1 - rank, dist.new_group([1, 0])
    one, four = torch.ones(1), torch.ones(4)
    dist.send(one, 1) if rank == 0 else dist.recv(torch.zeros(1), 0)
    dist.send(one, 0) if rank == 1 else dist.recv(torch.zeros(1))  # from whoever comes
    work = dist.isend(four, other), dist.irecv(torch.zeros(4), other)
    for each in work:
        each.wait()
    ops = [dist.P2POp(dist.isend, four, other, swapped),
           dist.P2POp(dist.irecv, torch.zeros(4), other, swapped)]  # fmt: skip
    for each in dist.batch_isend_irecv(ops):
        each.wait()
    dist.barrier()


def futures():
    """Calls waited for by a future, by a derived future, and by nobody in Python."""
    group = dist.group.WORLD
    gathered = torch.zeros(8)
    dist.all_gather_into_tensor(gathered, torch.ones(4), async_op=True).get_future().wait()
    future = dist.all_reduce(torch.ones(4), async_op=True).get_future()
    future.then(lambda done: done.value()[0] * 2).wait()
    model = DistributedDataParallel(network())
    model.register_comm_hook(group, default_hooks.fp16_compress_hook)
    model(torch.ones(2, WIDTH)).sum().backward()


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
    """Installs, issues a collective and closes, a hundred times."""
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
    """As in an older torch: Python callers only."""

    def missing(*_):
        raise AttributeError("no such thing here")

    original, torch.library.Library = torch.library.Library, missing
    try:
        with Observed() as observed:
            dist.all_reduce(torch.ones(4))
            dist.all_gather([torch.zeros(4), torch.zeros(4)], torch.ones(4))
            unseen = observed.observer.unseen()
        return {"capture": observed.observer.capture, "records": observed.table(), "unseen": unseen}
    finally:
        torch.library.Library = original


def main():
    store, world, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    before, found = patched_state(), {}
    cases = {"single": single_ops, "asynchronous": asynchronous, "messages": messages}
    for name, case in (cases | {"futures": lambda _: futures()}).items():
        with Observed() as observed:
            case(rank)
            found[name] = {"issued": observed.observer.issued,
                            "positions": [asdict(each) for each in observed.observer.positions()],
                            "unseen": observed.observer.unseen(),
                            "capture": observed.observer.capture}  # fmt: skip
        found[name]["records"] = observed.table()
        found[name]["messages"] = observed.table(messages=True)
    for name, build in {"ddp": ddp, "fsdp": sharded}.items():
        plain = train(build(), rank)
        with Observed() as observed:
            losses = train(build(), rank, observed)
        found[name] = {"same_losses": losses == plain, "records": observed.table(),
                        "grad_bytes": sum(p.nbytes for p in network().parameters())}  # fmt: skip
    found["over_and_over"] = over_and_over()
    found["without"] = without_observer()
    found["restored"] = patched_state() == before
    dist.destroy_process_group()
    report(found)


if __name__ == "__main__":
    main()
