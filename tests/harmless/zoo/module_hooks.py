"""Forward, backward and tensor hooks, of one module and of all: calls and what they are given."""

import torch
from torch.nn.modules import module as modules
from training import batches, show, small_model, train_step

calls = []
model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
modules.register_module_forward_pre_hook(lambda m, args: calls.append(("pre", type(m).__name__)))
modules.register_module_forward_hook(lambda m, args, out: calls.append(("out", type(m).__name__)))
modules.register_module_full_backward_hook(lambda m, i, o: calls.append(("back", type(m).__name__)))
model[0].register_full_backward_pre_hook(lambda m, out: (out[0] * 0.5,))
model[2].register_forward_hook(lambda m, args, kwargs, out: out + 1e-3, with_kwargs=True)
model[0].weight.register_hook(lambda grad: grad * 1.5)
for batch in batches():
    show("loss", train_step(model, optimizer, batch), len(calls), calls[-10:])
    show(len(model._forward_hooks), len(modules._global_forward_hooks))
