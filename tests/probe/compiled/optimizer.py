"""A compiled optimizer's step, and what dynamo counts of it. Run with and without a probe."""

import sys

import torch
from torch import nn
from torch._dynamo.utils import counters

if "watched" in sys.argv:
    import dpwatch

    probe = dpwatch.watch()
    probe.steps.ledger.close()  # the hooks alone
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
x, y = torch.randn(4, 8), torch.randn(4, 8)
compiled = torch.compile(optimizer.step, backend="eager", fullgraph=False)
evaluate = torch.compile(lambda x: model(x).sum(), backend="eager", fullgraph=True)
for step in range(40):
    loss = (model(x) - y).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    compiled() if step >= 10 else optimizer.step()
    if step == 20:
        print("evaluated", float(evaluate(x).detach()).hex())
    print(step, float(loss.detach()).hex())
print("frames", counters["frames"]["ok"], "graphs", counters["stats"]["unique_graphs"])
print("breaks", sum(counters["graph_break"].values()))
if "watched" in sys.argv:
    probe.steps.conclude()
    print("steps", probe.steps.step, file=sys.stderr)
