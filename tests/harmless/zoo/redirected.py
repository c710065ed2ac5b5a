"""redirect_stdout, os.dup2 and captured output: each text goes where the script sends it."""

import contextlib
import io
import os
import sys

import torch
from training import show, small_model, train

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
train(model, optimizer, 14)
caught = io.StringIO()
with contextlib.redirect_stdout(caught), contextlib.redirect_stderr(caught):
    train(model, optimizer, 14)
    print("to stderr", file=sys.stderr)
show(caught.getvalue().count("\n"), caught.getvalue()[-80:])
sys.stdout.flush()
kept = os.dup(1)
with open("told.txt", "wb") as file:
    os.dup2(file.fileno(), 1)
train(model, optimizer, 14)
os.system("echo from a child")
os.dup2(kept, 1)
show(open("told.txt").read())
