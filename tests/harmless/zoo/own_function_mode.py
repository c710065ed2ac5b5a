"""The script's own TorchFunctionMode lists every function called: none may be the probe's."""

import torch
from torch.overrides import TorchFunctionMode
from training import batches, show, small_model, train_step


class Listed(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        seen.append(getattr(function, "__name__", str(function)))
        return function(*args, **(kwargs or {}))


seen = []
model = small_model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
with Listed():
    for batch in batches():
        show("loss", train_step(model, optimizer, batch), "calls", len(seen))
        seen.append("--")
show(sorted({(name, seen.count(name)) for name in seen}))
