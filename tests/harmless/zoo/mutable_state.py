"""Global switches of torch: gradient mode, autocast, default dtype, stacks of modes."""

import torch
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)


def switches():
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(), torch.get_default_device(), torch.is_anomaly_enabled(),
        torch._C._is_torch_function_enabled(), torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(), torch._C._autograd._saved_tensors_hooks_is_enabled(),
        torch.autograd.graph._allow_mutation_on_saved_tensors_enabled,
        torch.get_num_interop_threads(),
        torch.backends.mkldnn.enabled, torch._C._get_tracing_state(),
        torch.is_warn_always_enabled(),
        torch._C._functorch.maybe_current_level(), torch.is_vulkan_available(),
    )  # fmt: skip


model.register_forward_hook(lambda *_: show("forward", switches()))
model[0].weight.register_hook(lambda grad: show("backward", switches()))
optimizer.register_step_pre_hook(lambda *_: show("optimizer", switches()))
for batch in batches():
    show("loss", train_step(model, optimizer, batch), switches())
