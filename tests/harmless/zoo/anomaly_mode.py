"""Anomaly mode: a NaN in backward raises, with the traceback of the forward call that made it."""

import warnings

import torch
from training import batches, frames_of, show, small_model

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, (inputs, _) in enumerate(batches()):
    optimizer.zero_grad()
    with (
        torch.autograd.detect_anomaly(check_nan=True),
        warnings.catch_warnings(record=True) as heard,
    ):
        out = model(inputs)
        loss = (torch.sqrt(out * 0 * (number % 5 == 1)) if number % 5 == 1 else out).pow(2).mean()
        try:
            loss.backward()
            optimizer.step()
        except RuntimeError as error:
            show(type(error).__name__, error, frames_of(error))
            show([str(each.message)[-200:] for each in heard])
    show("loss", loss)
