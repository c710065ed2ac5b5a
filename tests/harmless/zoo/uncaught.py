"""Uncaught exceptions of all kinds, in forked children and in the script: stderr, exit code.

exit: 1 | 130
variants: plain | interrupt
also: watch
"""

import os
import sys

import torch
from training import show, small_model, train


class Mute(Exception):
    def __str__(self):
        raise ValueError("no text")


def deeper(number):
    return deeper(number + 1) + 1


def end(how):
    model = small_model()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 14)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "mute":
        raise Mute
    if how == "chained":
        try:
            raise KeyError("first")
        except KeyError as error:
            raise RuntimeError("second") from error
    if how == "group" and sys.version_info >= (3, 11):
        raise ExceptionGroup("several", [ValueError(1), TypeError(2)])  # noqa: F821
    if how == "recursion":
        deeper(0)
    if how == "memory":
        torch.empty(1 << 60)
    if how == "syntax":
        exec("1 +")
    raise RuntimeError("uncaught")


for how in ("mute", "chained", "group", "recursion", "memory", "syntax"):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        end(how)
    show(how, "left with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
end(sys.argv[1])
