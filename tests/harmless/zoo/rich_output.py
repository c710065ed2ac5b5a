"""rich: live display, redirected streams, and its traceback instead of Python's.

exit: 1
needs: module rich
"""

import sys

import torch
from rich.console import Console
from rich.live import Live
from rich.traceback import install
from training import batches, small_model, train_step

console = Console(file=sys.stdout, width=80, force_terminal=True)
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with Live("begins", console=console, auto_refresh=False, redirect_stdout=True) as live:
    for batch in batches():
        loss = float(train_step(model, optimizer, batch).detach())
        live.update(loss.hex(), refresh=True)
        print("printed", loss.hex())
install(console=console, width=80, suppress=[torch])
raise RuntimeError("uncaught")
