"""The script's own TorchDispatchMode lists every operator: none may be the probe's."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from training import batches, show, small_model, train_step


class Listed(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        seen.append(str(op))
        return op(*args, **(kwargs or {}))


seen = []
model = small_model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for number, batch in enumerate(batches()):
    if number % 4 == 3:
        loss = train_step(model, optimizer, batch)
    else:
        with Listed():
            loss = train_step(model, optimizer, batch)
    show("loss", loss, len(seen), [type(m).__name__ for m in _get_current_dispatch_mode_stack()])
with Listed():
    for batch in batches():
        train_step(model, optimizer, batch)
show(len(seen), sorted({(op, seen.count(op)) for op in seen}))
