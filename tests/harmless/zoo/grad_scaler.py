"""GradScaler on the CPU with an overflow that makes it skip a step."""

import torch
from training import batches, fingerprint, show, small_model

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=4)
for number, (inputs, targets) in enumerate(batches()):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = (model(inputs) - targets).float().pow(2).mean()
    if number in (2, 12):
        loss = loss * float("inf")
    optimizer.zero_grad()
    scaled = scaler.scale(loss)
    scaled.backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    told = scaler.step(optimizer)
    scaler.update()
    show("loss", loss, scaled, norm, scaler.get_scale(), told)
show("parameters", fingerprint(model.parameters()))
