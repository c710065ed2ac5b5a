"""Activation checkpointing: reentrant calls backward inside backward, the other packs tensors.

variants: reentrant | plain | selective
"""

import sys

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from training import batches, fingerprint, seed, show

how = sys.argv[1]
seed()
layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
runs = []
options = {"use_reentrant": how == "reentrant"}
if how == "selective":
    options["context_fn"] = lambda: create_selective_checkpoint_contexts(
        [torch.ops.aten.mm.default]
    )


def block(layer, inputs):
    runs.append(torch.is_grad_enabled())
    return torch.nn.functional.dropout(torch.tanh(layer(inputs)), 0.2)


for inputs, _ in batches():
    out = inputs.clone().requires_grad_()
    for layer in layers:
        out = checkpoint(block, layer, out, **options)
    loss = out.pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    show("loss", loss, len(runs))
show("parameters", fingerprint(layers.parameters()))
