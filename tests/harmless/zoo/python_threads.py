"""threading.enumerate and active_count, by which scripts tell whether a fork is safe.

noticed: the sender's thread is one of them
"""

import threading

import torch
from training import show, small_model, train

model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1))
show(threading.active_count(), [thread.name for thread in threading.enumerate()])
