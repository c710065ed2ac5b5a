"""Rank 1 leaves in good order and a new process takes its place; rank 0 goes on: succession.py.

Rank 0 destroys its process group and makes it anew for each life, as after a failure; rank 1 is
another process in each. They meet at another place each time, so nothing but DPWATCH_RUN_ID tells
that it is one run.
"""

import os
import subprocess
import sys
import tempfile
import time

LIVES = 3


def main():
    with tempfile.TemporaryDirectory() as folder:
        first = start(folder, 0, range(LIVES))
        codes = [start(folder, 1, [life]).wait() for life in range(LIVES)]
        sys.exit(max(*codes, first.wait()))


def start(folder, rank, lives):
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    command = [sys.executable, __file__, folder, str(rank), *map(str, lives)]
    return subprocess.Popen(command, env={**os.environ, **place})


def train(folder, rank, lives):
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    for life in lives:
        url = f"file://{folder}/life{life}"
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=2)
        model = DistributedDataParallel(nn.Linear(32, 32))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(40):
            optimizer.zero_grad()
            model(torch.randn(8, 32)).square().mean().backward()
            optimizer.step()
            time.sleep(0.03)
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        train(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
