"""Subprocesses: what they inherit of descriptors, signals, modules; how they end."""

import os
import subprocess
import sys

import torch
from training import batches, show, small_model, train_step

CHILD = """
import os, signal, sys
opened = [fd for fd in range(3, 64) if os.path.exists(f"/proc/self/fd/{fd}")]
print(opened[1:])
print([s for s in range(1, 32) if signal.getsignal(s) not in (0, 1, None)])
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
print([name for name in ("torch", "dpwatch") if name in sys.modules])
"""
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, batch in enumerate(batches(14)):
    show("loss", train_step(model, optimizer, batch))
    if number in (1, 12):
        for close in (True, False):
            done = subprocess.run(
                [sys.executable, "-c", CHILD], close_fds=close, capture_output=True, text=True
            )
            show(done.returncode, done.stdout, done.stderr)
        show(os.system("exit 3"), os.popen("echo popen").read())
