"""The same optimizer as a loop, with foreach, and fused.

variants: forloop | foreach | fused
"""

import sys

import torch
from training import show, small_model, train

how = sys.argv[1]
model = small_model()
options = {"foreach": False} if how == "forloop" else {how: True}
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True, **options)
train(model, optimizer)
show([sorted(state) for state in optimizer.state.values()])
