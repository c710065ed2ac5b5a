"""Evaluation between steps: no_grad, inference_mode, requires_grad_ off, weight averages, EMA."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training import batches, fingerprint, loss_of, show, small_model, train_step

model = small_model()
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for batch in batches():
    show("loss", train_step(model, optimizer, batch))
    average.update_parameters(model)
    with torch.no_grad():
        show(loss_of(average, batch))
    with torch.inference_mode():
        out = model.eval()(batch[0])
        show(out.is_inference(), out.sum())
    model.train()
show(fingerprint(average.parameters()))
