"""Noise drawn in every step: a probe that drew from a generator would change all that follows."""

import torch
from torch import nn
from training import random_states, seed, show, train

seed()
model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.3), nn.GELU(), nn.Linear(32, 4))
train(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
show(*random_states())
