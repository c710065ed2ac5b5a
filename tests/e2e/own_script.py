"""A script of somebody's own with one added line: DDP, a DataLoader, gradient accumulation."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import dpwatch

BATCH, FEATURES, STEPS, ACCUMULATE = 8, 32, 12, 2


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = DistributedDataParallel(nn.Sequential(nn.Linear(FEATURES, 64), nn.Linear(64, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = TensorDataset(torch.randn(2 * BATCH * STEPS * ACCUMULATE, FEATURES))
    loader = DataLoader(data, BATCH, sampler=DistributedSampler(data))
    with dpwatch.watch():
        for index, (inputs,) in enumerate(loader, 1):
            model(inputs).square().mean().backward()
            if index % ACCUMULATE == 0:
                optimizer.step()
                optimizer.zero_grad()
    dist.barrier()
    dist.destroy_process_group()


main()
