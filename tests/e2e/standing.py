"""Two ranks that stand at known lines: one waits, one loops for ever. Ends when the file is there.

standing.py FREE, with RANK and WORLD_SIZE as torchrun sets them.
"""

import os
import sys
import threading

import dpwatch


def waits(freed):
    while not os.path.exists(freed):
        threading.Event().wait(0.2)  # here


def loops(freed):
    while not os.path.exists(freed):
        sum(range(1_000_000))  # here


with dpwatch.watch(title="standing"):
    dpwatch.step()
    (loops if os.environ["RANK"] == "1" else waits)(sys.argv[1])
