"""Two threads train a model each while the main thread waits.

order: any
"""

import threading

import torch
from training import batches, fingerprint, show, small_model, train_step


def work(number):
    torch.set_num_threads(1)
    with lock:
        model = small_model(number)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches():
        show(number, "loss", train_step(model, optimizer, batch))
    show(
        number,
        fingerprint(model.parameters()),
        torch.is_grad_enabled(),
        threading.current_thread().name,
    )


lock = threading.Lock()
threads = [threading.Thread(target=work, args=(n,), name=f"trainer {n}") for n in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
