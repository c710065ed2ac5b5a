"""Two ranks that stand at known lines: one waits, one loops for ever. Ends when the file is there.

standing.py FREE, with RANK and WORLD_SIZE as torchrun sets them.
"""

import os
import sys
import threading

import dpwatch


def waits(freed):
    while not (threading.Event().wait(0.2) or os.path.exists(freed)):  # here
        pass


def loops(freed):
    while not (sum(range(1_000_000)) and os.path.exists(freed)):  # here
        pass


with dpwatch.watch(title="standing"):
    dpwatch.step()
    (loops if os.environ["RANK"] == "1" else waits)(sys.argv[1])
