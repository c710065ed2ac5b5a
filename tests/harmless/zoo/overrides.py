"""torch.overrides: what can be overridden, by which names; functions are the known ones."""

import torch
from training import show, small_model, train

model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1))
found = torch.overrides.get_overridable_functions()
show(
    sorted(
        (str(getattr(space, "__name__", space)), len(functions))
        for space, functions in found.items()
    )
)
show(
    sorted(getattr(f, "__name__", str(f)) for f in torch.overrides.get_testing_overrides())[:400:20]
)
for function in (
    torch.autograd.backward,
    torch.autograd.grad,
    torch.Tensor.backward,
    torch.Tensor.to,
):
    show(
        function.__name__,
        torch.overrides.resolve_name(function),
        torch.overrides.is_tensor_method_or_property(function),
    )
    show(
        function in torch.overrides.get_ignored_functions(),
        function in torch.overrides.get_testing_overrides(),
    )
