"""An ordinary loop: its losses, its parameters, and the state of every random generator."""

import torch
from training import random_states, show, small_model, train

model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
show(*random_states())
