"""Own optimizers: a subclass, one that calls super().step(), one that is none of torch's."""

import torch
from training import batches, fingerprint, show, small_model, train_step


class Sign(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                param.add_(param.grad.sign(), alpha=-group["lr"])


class Counted(torch.optim.SGD):
    def step(self, closure=None):
        self.count = getattr(self, "count", 0) + 1
        return super().step(closure)


class Bare:
    def __init__(self, params):
        self.params = list(params)

    def zero_grad(self):
        for param in self.params:
            param.grad = None

    def step(self):
        with torch.no_grad():
            for param in self.params:
                param -= 0.1 * param.grad


for number, make in enumerate((lambda p: Sign(p, 1e-3), lambda p: Counted(p, lr=0.1), Bare)):
    model = small_model(number)
    optimizer = make(model.parameters())
    for batch in batches(14):
        show("loss", train_step(model, optimizer, batch))
    show(
        type(optimizer).__name__, getattr(optimizer, "count", None), fingerprint(model.parameters())
    )
    show(sorted(name for name in vars(type(optimizer)) if not name.startswith("_")))
