"""An interactive interpreter, like a notebook's kernel: cells, and their errors."""

import code
import sys
from pathlib import Path

CELLS = [
    "import torch",
    "from training import batches, show, small_model, train_step",
    "model = small_model(); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)",
    "for batch in batches(14): show('loss', train_step(model, optimizer, batch))\n",
    "model(torch.zeros(1, 3))",
    "1 / 0",
    "raise KeyboardInterrupt('cell interrupted')",
    "optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)",
    "for batch in batches(14): show('loss', train_step(model, optimizer, batch))\n",
    "sorted(name for name in globals() if not name.startswith('_'))",
]
sys.path.append(str(Path(__file__).parent))
interpreter = code.InteractiveConsole({"__name__": "__main__"})
for cell in CELLS:
    try:
        interpreter.runsource(cell, "<cell>", "single" if "\n" not in cell else "exec")
    except BaseException as error:
        print("out of the cell:", type(error).__name__, error)
