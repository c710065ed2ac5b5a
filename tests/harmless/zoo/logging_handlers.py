"""logging: levels, handlers and records stay the script's, and nobody logs into its root logger."""

import logging
import sys

import torch
from training import batches, show, small_model, train_step

logging.basicConfig(
    level=logging.DEBUG,
    stream=sys.stdout,
    format="%(name)s %(funcName)s %(threadName)s %(message)s",
)
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in batches():
    logging.getLogger("train").info("loss %s", float(train_step(model, optimizer, batch)).hex())
root = logging.getLogger()
show(root.level, [type(h).__name__ for h in root.handlers], logging.raiseExceptions)
show(
    [
        name
        for name in sorted(logging.root.manager.loggerDict)
        if name.split(".")[0] not in ("torch", "asyncio", "concurrent")
    ]
)
