"""L-BFGS calls its closure many times a step; its line search depends on every bit."""

import torch
from training import batches, fingerprint, loss_of, show, small_model

model = small_model()
optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", max_iter=8)
for batch in batches():
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        calls.append(loss.detach())
        return loss

    show("loss", optimizer.step(closure), len(calls))
show("parameters", fingerprint(model.parameters()))
