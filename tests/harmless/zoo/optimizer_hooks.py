"""The user's own optimizer hooks, of one optimizer and of all: which, in which order, how many."""

import torch
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from training import batches, show, small_model, train_step

calls = []
register_optimizer_step_pre_hook(lambda *_: calls.append("all, before"))
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
optimizer.register_step_post_hook(lambda *_: calls.append("after"))
handle = register_optimizer_step_post_hook(lambda *_: calls.append("all, after"))
for number, batch in enumerate(batches()):
    show("loss", train_step(model, optimizer, batch))
    if number == 12:
        handle.remove()
    show(calls)
    calls.clear()
mine = [
    f
    for hooks in (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
    for f in hooks.values()
]
show("all hooks that are there:", [f.__module__ for f in mine if f.__module__ == "__main__"])
