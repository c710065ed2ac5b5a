"""sys.stdout itself: its class, its attributes, its methods, what write returns.

noticed: write is a function among the stream's own attributes
"""

import sys

import torch
from training import small_model, train

before = (sys.stdout, sys.stderr, sorted(vars(sys.stdout)))
model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1), 14)
for stream in (sys.stdout, sys.stderr):
    print(type(stream).__name__, type(stream.write).__name__, stream.write("x\n"), stream.name)
    print(sorted(vars(stream)), stream.write.__self__ is stream, stream.write.__qualname__)
print(sys.stdout is before[0], sys.stdout is sys.__stdout__, sorted(vars(sys.stdout)) == before[2])
sys.stdout.reconfigure(line_buffering=True, errors="replace")
try:
    print(1, file=sys.stdout, flush=True, end=None)
    sys.stdout.write(1)
except TypeError as error:
    print(error)
sys.stdout.writelines(["a\n", "b\n"])
