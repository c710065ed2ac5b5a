"""Pickling, by both picklers, of models, optimizers, and of the very functions a probe may wrap."""

import copy
import io
import pickle
import pickletools

import torch
from training import batches, show, small_model, train_step

THINGS = {
    "Module.__call__": lambda: torch.nn.Module.__call__,
    "backward": lambda: torch.autograd.backward,
    "Tensor.backward": lambda: torch.Tensor.backward,
    "grad": lambda: torch.autograd.grad,
    "scale": lambda: torch.amp.GradScaler.scale,
    "zero_grad": lambda: torch.optim.Optimizer.zero_grad,
    "Optimizer.__init__": lambda: torch.optim.Optimizer.__init__,
    "init_process_group": lambda: torch.distributed.init_process_group,
}
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for number, batch in enumerate(batches()):
    show("loss", train_step(model, optimizer, batch))
    if number in (0, 2, 15):
        for name, find in THINGS.items():
            thing = find()
            told = pickle.dumps(thing)
            show(
                name,
                [op.name for op, _, _ in pickletools.genops(told)],
                pickle.loads(told) is thing,
            )
        show(
            len(pickle.dumps(model)),
            len(pickle.dumps(optimizer)),
            len(pickle.dumps(optimizer.step.__func__)),
        )
        copied = copy.deepcopy((model, optimizer))
        show(train_step(*copied, batch))
        torch.save(
            {"model": model.state_dict(), "all": model, "optimizer": optimizer}, f"{number}.pt"
        )
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        show(type(torch.load(buffer, weights_only=False)).__name__)
