"""os._exit, abort and kill in mid-training: nothing may hold the process, or change its code.

exit: 12
"""

import os
import signal
import sys

import torch
from training import show, small_model, train

WAYS = (lambda: os._exit(11), os.abort, lambda: os.kill(os.getpid(), signal.SIGKILL))
for way in (*WAYS, None):
    sys.stdout.flush()
    child = os.fork() if way else 0
    if not child:
        model = small_model()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), 14)
        way() if way else os._exit(12)
    show("left with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
