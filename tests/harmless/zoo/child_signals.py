"""A SIGCHLD handler that waits for any child, as supervisors do: all are the script's."""

import os
import signal
import subprocess

import torch
from training import batches, show, small_model, train_step

ended = []


def reap(*_):
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        ended.append(pid)


signal.signal(signal.SIGCHLD, reap)
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
mine = []
for number, batch in enumerate(batches()):
    show("loss", train_step(model, optimizer, batch))
    if number % 8 == 1:
        mine.append(subprocess.Popen(["true"]).pid)
while not set(mine) <= set(ended):
    signal.sigtimedwait([], 0.02)
show("all mine:", sorted(ended) == sorted(mine))
try:
    os.wait()
except ChildProcessError:
    show("no child left")
