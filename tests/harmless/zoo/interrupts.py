"""KeyboardInterrupt that the script catches, as a notebook does, and SIGTERM by which it leaves.

exit: 15
"""

import os
import signal
import sys

import torch
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
for number, batch in enumerate(batches()):
    try:
        show("loss", train_step(model, optimizer, batch))
        if number % 5 == 2:
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)
    except KeyboardInterrupt:
        show("interrupted")
os.kill(os.getpid(), signal.SIGTERM)
signal.sigtimedwait([], 1)
