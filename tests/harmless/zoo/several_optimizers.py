"""Two optimizers on one backward, and a GAN's two in turn, with schedulers on each."""

import torch
from training import batches, fingerprint, loss_of, show, small_model

one, two = small_model(0), small_model(1)
first = torch.optim.Adam(one.parameters(), lr=1e-2)
second = torch.optim.SGD(two.parameters(), lr=0.1)
schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, 20) for each in (first, second)]
for number, batch in enumerate(batches()):
    for each in (first, second):
        each.zero_grad()
    if number % 2:
        (loss_of(one, batch) + loss_of(two, batch)).backward()
        first.step()
        second.step()
    else:
        loss_of(one, batch).backward()
        first.step()
        loss_of(two, batch).backward()
        second.step()
    for each in schedules:
        each.step()
    show("loss", loss_of(one, batch), loss_of(two, batch), schedules[0].get_last_lr())
show(fingerprint(one.parameters()), fingerprint(two.parameters()))
