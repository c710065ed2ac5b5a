"""What Dynamo guards on and which lines it traces: nothing of a hook may be among them."""

import torch
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
seen = []


def backend(graph, examples):
    seen.append([str(node) for node in graph.graph.nodes])
    return graph.forward


compiled = torch.compile(model, backend=backend)
for batch in batches():
    show("loss", train_step(compiled, optimizer, batch))
told = torch._dynamo.explain(model)(next(batches(1))[0])
show("graphs", len(seen), seen)
show("explained", told.graph_count, told.graph_break_count, told.op_count)
show("guards", sorted({str(guard.name) for guard in told.out_guards}))
