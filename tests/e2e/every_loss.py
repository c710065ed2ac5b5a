"""A run under a strategy that writes every loss, bit for bit: `every_loss.py STRATEGY STEPS`.

For `ddp` it forks its two ranks itself. With DPWATCH=0 nothing of the probe runs.
"""

import hashlib
import os
import sys
from contextlib import closing

import torch
import torch.distributed as dist

import dpwatch
from dpwatch.trainer.config import TrainConfig
from dpwatch.trainer.data import loader
from dpwatch.trainer.rank_place import find_rank_place
from dpwatch.trainer.strategies import build

RANKS = 2


def train(strategy, steps, rank, ranks):
    torch.set_num_threads(1)
    config = TrainConfig(strategy=strategy, gpus=RANKS, steps=steps, d_model=32, heads=2, layers=1)
    place = find_rank_place(config, rank=rank, world_size=ranks, local_rank=rank, local_ranks=ranks)
    lines = []
    probe = dpwatch.watch(strategy=strategy, devices=place.describe(config))
    with probe, closing(build(config, place, probe)) as trained:
        for tokens in loader(config, rank=rank, ranks=ranks):
            lines.append(f"{rank} {trained.step(tokens).item().hex()}")
            if len(lines) == steps:
                break
        digest = hashlib.sha256()
        for name, value in trained.parameters().items():
            digest.update(name.encode() + value.numpy().tobytes())
    # One write, so that the ranks' lines do not mix in the pipe.
    sys.stdout.write("\n".join([*lines, f"{rank} {digest.hexdigest()}\n"]))
    sys.stdout.flush()


def join_and_train(rank, store, strategy, steps):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    train(strategy, steps, rank, RANKS)
    dist.barrier()
    dist.destroy_process_group()


def train_ddp(store, steps):
    """Both ranks, forked: torch is imported once."""
    rank = (store, "ddp", steps)
    torch.multiprocessing.start_processes(join_and_train, rank, nprocs=RANKS, start_method="fork")


if __name__ == "__main__":
    strategy, steps, store = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if strategy == "ddp":
        train_ddp(store, steps)
    else:
        train(strategy, steps, 0, 1)
