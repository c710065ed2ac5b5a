"""Parametrized weights: orthogonal, weight norm, spectral norm, old and new, in one model."""

import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations
from training import random_states, seed, show, train

warnings.simplefilter("ignore", FutureWarning)
seed()
model = nn.Sequential(
    parametrizations.orthogonal(nn.Linear(8, 8)),
    parametrizations.weight_norm(nn.Linear(8, 8)),
    parametrizations.spectral_norm(nn.Linear(8, 8)),
    nn.utils.spectral_norm(nn.Linear(8, 8)),
    nn.utils.weight_norm(nn.Linear(8, 4)),
)
train(model, torch.optim.SGD(model.parameters(), lr=0.05))
show(sorted(model.state_dict()), *random_states())
