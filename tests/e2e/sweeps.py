"""Many trainings of one script: python sweeps.py HOW [METHOD]. Each prints its own last loss."""

import multiprocessing as mp
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

WIDTHS = (24, 32)


def train(width, steps=None):
    """A training whose loss shows which it is."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Linear(16, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 16)
    for _ in range(steps or width):
        optimizer.zero_grad()
        loss = model(x).pow(2).mean() + width
        loss.backward()
        optimizer.step()
        time.sleep(0.05)
    return loss.item()


def rank(number, size, port, steps):
    """A rank of a job that meets at a port."""
    import torch
    import torch.distributed as dist
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=size
    )
    model = nn.parallel.DistributedDataParallel(nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).pow(2).mean().backward()
        optimizer.step()
    dist.destroy_process_group()


def job(port, steps):
    """Two ranks, each with a session of its own, which leave past Python's own ending."""
    code = (
        f"import sweeps, os, sys; sweeps.rank(int(os.environ['RANK']), 2, {port}, {steps}); "
        "sys.stdout.flush(); __import__('time').sleep(0.5); os._exit(0)"
    )
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), os.path.dirname(__file__)])
    return [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **told, "RANK": str(number), "PYTHONPATH": path},
            start_new_session=True,
        )
        for number in range(2)
    ]


def main(how, port):
    if how == "sessions":
        assert [each.wait() for each in job(port, 20)] == [0, 0]
    elif how == "jobs":  # one after another at the same port
        import torch.multiprocessing

        for steps in (10, 15):
            torch.multiprocessing.spawn(rank, (2, port, steps), 2)
    elif how == "tasks":  # one after another in the same process
        with ProcessPoolExecutor(1, mp.get_context("spawn")) as pool:
            for width in WIDTHS:
                print(width, pool.submit(train, width).result())
    elif how == "processes":
        children = [mp.get_context("spawn").Process(target=train, args=(w,)) for w in WIDTHS]
        for child in children:
            child.start()
        for child in children:
            child.join()
    else:
        with mp.get_context(how).Pool(2) as pool:
            for width, loss in zip(WIDTHS, pool.map(train, WIDTHS, chunksize=1), strict=True):
                print(width, loss)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
