"""torch.export in mid-training, of a model and of its training graph."""

import torch
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, batch in enumerate(batches()):
    show("loss", train_step(model, optimizer, batch))
    if number in (0, 1, 2, 10, 15):
        program = torch.export.export(model, (batch[0],))
        show(program.graph_module.code.strip())
        show("exported", program.module()(batch[0]).sum())
        show(torch.fx.symbolic_trace(model).code.strip())
torch.export.save(program, "model.pt2")
show("loaded", torch.export.load("model.pt2").module()(batch[0]).sum())
