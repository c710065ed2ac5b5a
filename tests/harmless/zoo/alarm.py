"""A time limit by SIGALRM, whose handler raises wherever the script is: each one must arrive."""

import signal
import time

import torch
from training import batches, show, small_model, train_step


class TimeUp(Exception):
    pass


def handler(*_):
    if armed:
        raised.append(True)
        raise TimeUp("time is up")


signal.signal(signal.SIGALRM, handler)
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
batch = next(batches(1))
train_step(model, optimizer, batch)
raised, caught, armed = [], 0, True
for number in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002 + number % 13 * 0.0007)
        end = time.monotonic() + 5
        while time.monotonic() < end and len(raised) == number:
            for _ in range(20):
                model(batch[0])
            train_step(model, optimizer, batch)
    except TimeUp:
        caught += 1
        torch.set_grad_enabled(True)  # torch's optimizers leave it off where they are interrupted
armed = False
signal.setitimer(signal.ITIMER_REAL, 0)
show("raised", len(raised), "caught", caught)
