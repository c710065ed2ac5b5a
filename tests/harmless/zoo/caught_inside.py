"""The same exceptions, caught: their type, notes, context, and the functions in their traceback."""

import torch
from training import batches, frames_of, show, small_model, train_step


def fail(*_):
    if number in (1, 2, 5, 13, 20):
        raise ValueError("no good")


model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
hooks = {
    "forward": model[1].register_forward_hook,
    "backward": model[0].weight.register_hook,
    "optimizer": optimizer.register_step_pre_hook,
}
for where, register in hooks.items():
    handle = register(fail)
    for number, batch in enumerate(batches()):
        try:
            show("loss", train_step(model, optimizer, batch))
        except ValueError as error:
            notes = getattr(error, "__notes__", None)
            show(where, frames_of(error), error.__context__, error.__cause__, notes)
    handle.remove()
