"""A wrapper subclass with __torch_dispatch__, as a parameter, that records every operator."""

import torch
from torch.utils._pytree import tree_map
from training import batches, fingerprint, show

calls = []


class Wrapped(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        calls.append(str(op))
        bare = tree_map(lambda t: t.inner if isinstance(t, Wrapped) else t, (args, kwargs or {}))
        result = op(*bare[0], **bare[1])
        if str(op).split(".")[1].endswith("_"):
            return args[0]
        return tree_map(lambda t: Wrapped(t) if isinstance(t, torch.Tensor) else t, result)


torch.manual_seed(0)
model = torch.nn.Linear(8, 4)
model.weight = torch.nn.Parameter(Wrapped(model.weight.detach()))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
for inputs, targets in batches():
    optimizer.zero_grad()
    loss = (model(inputs) - targets).pow(2).mean()
    loss.backward()
    optimizer.step()
    show("loss", loss.inner, len(calls), calls[-5:])
show("parameters", fingerprint([model.weight.inner, model.bias]))
