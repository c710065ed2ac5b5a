"""Saving and loading model, optimizer and generator in mid-training; then the same losses."""

import copy

import torch
from training import batches, fingerprint, show, small_model, train_step

model = small_model()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for number, batch in enumerate(batches()):
    if number == 12:
        torch.save(
            {"m": model.state_dict(), "o": optimizer.state_dict(), "r": torch.get_rng_state()},
            "c.pt",
        )
        twin, twin_optimizer = copy.deepcopy(model), None
    show("loss", train_step(model, optimizer, batch))
told = torch.load("c.pt")
twin.load_state_dict(told["m"])
twin_optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2)
twin_optimizer.load_state_dict(told["o"])
for number, batch in enumerate(batches()):
    if number >= 12:
        show("again", train_step(twin, twin_optimizer, batch))
show(fingerprint(model.parameters()), fingerprint(twin.parameters()))
