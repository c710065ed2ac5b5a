"""multiprocessing's ways to start workers that train, while the parent trains too.

variants: fork | spawn | forkserver
"""

import multiprocessing
import sys

import torch
from training import batches, fingerprint, show, small_model, train, train_step


def work(number):
    model = small_model(number)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches():
        loss = train_step(model, optimizer, batch)
    return number, float(loss.detach()).hex(), fingerprint(model.parameters())


if __name__ == "__main__":
    model = small_model()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 14)
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        show(pool.map(work, range(4)))
    worker = context.Process(target=sys.exit, args=(9,))
    worker.start()
    worker.join()
    show("left with", worker.exitcode, multiprocessing.active_children())
