"""inspect on all that a probe hooks: signature, source, documentation, names."""

import inspect

import torch
import torch.distributed
import torch.utils.data.dataloader as loading
from training import show, small_model, train

HOOKED = {
    "Module.__call__": lambda: vars(torch.nn.Module)["__call__"],
    "autograd.backward": lambda: torch.autograd.backward,
    "autograd.grad": lambda: torch.autograd.grad,
    "loader": lambda: vars(loading._BaseDataLoaderIter)["__next__"],
    "scale": lambda: vars(torch.amp.GradScaler)["scale"],
    "Optimizer.__init__": lambda: vars(torch.optim.Optimizer)["__init__"],
    "init_process_group": lambda: torch.distributed.init_process_group,
    "all_reduce": lambda: torch.distributed.all_reduce,
}
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
train(model, optimizer, 14)
for name, find in HOOKED.items():
    function = find()
    show(
        name, type(function).__name__, function.__module__, function.__name__, function.__qualname__
    )
    show(inspect.signature(function), len(inspect.getdoc(function) or ""), function.__annotations__)
    show(getattr(function, "__defaults__", None), getattr(function, "__kwdefaults__", None))
    show(sorted({*vars(function)} - {"__wrapped__"}), inspect.unwrap(function).__qualname__)
    try:
        source = inspect.getsourcefile(inspect.unwrap(function))
        show(len(inspect.getsource(function)), source.rpartition("torch/")[2])
    except (OSError, TypeError) as error:
        show(type(error).__name__)
