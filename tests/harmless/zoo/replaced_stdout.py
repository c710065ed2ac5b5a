"""sys.stdout and sys.stderr replaced by the script, before and after training begins.

variants: before | after | binary
"""

import io
import sys

import torch
from training import batches, show, small_model, train, train_step


class Tee:
    def __init__(self, stream):
        self.stream, self.count = stream, 0

    def write(self, text):
        self.count += 1
        return self.stream.write(text)

    def flush(self):
        self.stream.flush()


how = sys.argv[1]
plain = sys.stdout
if how == "before":
    sys.stdout, sys.stderr = Tee(sys.stdout), Tee(sys.stderr)
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
train(model, optimizer, 14)
if how == "after":
    sys.stdout, sys.stderr = Tee(sys.stdout), Tee(sys.stderr)
if how == "binary":
    sys.stdout = io.TextIOWrapper(open(1, "wb", 0, closefd=False), write_through=True)
for batch in batches():
    show("loss", train_step(model, optimizer, batch))
print("to stderr", file=sys.stderr)
plain.write(f"{getattr(sys.stdout, 'count', None)} {getattr(sys.stderr, 'count', None)}\n")
plain.write(f"{sys.stdout is plain} {plain.encoding} {plain.line_buffering}\n")
