"""atexit, weakref.finalize, multiprocessing's finalizers, threads: in which order at exit."""

import atexit
import multiprocessing.util
import threading
import weakref

import torch
from training import show, small_model, train


class Kept:
    def __del__(self):
        print("deleted", flush=True)


atexit.register(print, "atexit, before", flush=True)
multiprocessing.util.Finalize(None, print, args=("finalizer",), exitpriority=5)
model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1), 14)
atexit.register(print, "atexit, after", flush=True)
weakref.finalize(model, print, "model gone", flush=True)
threading._register_atexit(print, "threads")
kept = Kept()
show("atexit functions of mine:", 2)
