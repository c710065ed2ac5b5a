"""torch.multiprocessing.spawn with two gloo ranks, one of which may fail.

exit: 0 | 4
variants: well | failing
order: any
"""

import logging
import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training import batches, show, small_model, train_step


def work(rank, port, how):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = DistributedDataParallel(small_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches(14):
        show(rank, "loss", train_step(model, optimizer, batch))
    if rank == 1 and how == "failing":
        raise ValueError("a bad sample")
    dist.destroy_process_group()


if __name__ == "__main__":
    # Whether the other rank still lives when one has failed is chance, and so is its number.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        torch.multiprocessing.spawn(
            work, args=(int(os.environ["MASTER_PORT"]), sys.argv[1]), nprocs=2
        )
    except torch.multiprocessing.ProcessRaisedException as error:
        show(type(error).__name__, error.error_index, str(error).strip().splitlines()[-1])
        sys.exit(4)
