"""The script's own excepthook, unraisablehook and threading.excepthook, and their calls.

exit: 1
"""

import gc
import sys
import threading

import torch
from training import show, small_model, train


class Broken:
    def __del__(self):
        raise ValueError("in __del__")


def uncaught(kind, error, trace):
    frames = 0
    while trace is not None:
        frames, trace = frames + 1, trace.tb_next
    print("MINE", kind.__name__, error, frames, flush=True)


def elsewhere(told):
    print("THREAD", told.exc_type.__name__, told.exc_value, told.thread.name, flush=True)


sys.excepthook = uncaught
sys.unraisablehook = lambda told: print("UNRAISABLE", told.exc_value, flush=True)
threading.excepthook = elsewhere
model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1), 14)
show("is mine:", threading.excepthook is elsewhere)
Broken()
gc.collect()
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
raise RuntimeError("uncaught")
