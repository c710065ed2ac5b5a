"""What a script can count of itself: children, signal handlers, finders, limits."""

import os
import signal
import sys
import threading
from pathlib import Path

import torch
from training import show, small_model, train


def counted():
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    show("children", len(children))
    show("signals", [n for n in range(1, 32) if signal.getsignal(n) not in (0, 1, None)])
    show("mask", signal.pthread_sigmask(signal.SIG_BLOCK, []))
    show("finders", [type(f).__name__ for f in sys.meta_path], len(sys.path_hooks))
    show("cwd", os.getcwd() == os.path.realpath("."), oct(os.umask(0o22)), oct(os.umask(0o22)))
    show("switch", sys.getswitchinterval(), sys.getrecursionlimit(), torch.get_num_threads())


model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1))
counted()
