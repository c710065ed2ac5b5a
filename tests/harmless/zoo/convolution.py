"""Convolutions, channels last, batch norm, pooling and interpolation, under autocast."""

import torch
from torch import nn
from training import fingerprint, seed, show

seed()
model = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.ConvTranspose2d(8, 4, 3)
)
model = model.to(memory_format=torch.channels_last)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
for number in range(24):
    images = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", enabled=bool(number % 2)):
        out = nn.functional.interpolate(model(images), scale_factor=2.0, mode="bilinear")
    loss = out.float().pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    show("loss", loss, out.dtype, out.stride())
show("parameters", fingerprint(model.state_dict().values()))
