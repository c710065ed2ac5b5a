"""Compiles functions that communicate, with the observer or without: exchange.py [watched].

Prints what dynamo made of them: frames, graphs, and where it stopped.
"""

import sys
import warnings

import torch
import torch.distributed as dist
from torch._dynamo.utils import counters

from tests.reports import report


def waits(x):
    y = x * 2
    dist.all_reduce(y, async_op=True).wait()
    return y + 1


def waits_by_future(x):
    y = x * 2
    dist.all_reduce(y, async_op=True).get_future().then(lambda done: done).wait()
    return y + 1


def synchronous(x):
    y = x * 2
    dist.all_reduce(y)
    return y + 1


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if "watched" in sys.argv:
        from dpwatch.probe.collectives import observer as collectives
        from dpwatch.probe.send.recorder import Recorder

        collectives.start(Recorder().append, torch.cuda.device_count)  # gives 0, and is torch's
    found = {}
    for function in (waits, waits_by_future, synchronous):
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(function, backend="eager")
        values = [compiled(torch.ones(3)).tolist() for _ in range(2)]
        stops = sorted(reason.split(" at 0x")[0] for reason in counters["graph_break"])
        found[function.__name__] = [values, counters["frames"], counters["stats"], stops]
    dist.destroy_process_group()
    report(found)


if __name__ == "__main__":
    main()
