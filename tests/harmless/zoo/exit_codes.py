"""sys.exit with every kind of argument, in forked children and in the script itself.

exit: 3 | 1
variants: 3 | text
also: watch
"""

import os
import sys

import torch
from training import show, small_model, train


class Leaving(SystemExit):
    pass


def leave(how):
    model = small_model()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 14)
    if how == "nested":
        try:
            raise RuntimeError("bad sample")
        except RuntimeError:
            sys.exit(5)
    if how == "subclass":
        raise Leaving(8)
    sys.exit("a message" if how == "text" else how)


for how in (0, 1, 300, -1, None, True, 2.5, "nested", "subclass", "text"):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        leave(how)
    show(how, "left with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
leave("text" if sys.argv[1] == "text" else int(sys.argv[1]))
