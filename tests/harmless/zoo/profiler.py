"""torch.profiler over every step: the events, how often each, and their memory."""

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for batch in batches(16):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        with record_function("mine"):
            loss = train_step(model, optimizer, batch)
    found = told.key_averages()
    show("loss", loss)
    show(sorted((e.key, e.count, e.self_cpu_memory_usage) for e in found))
