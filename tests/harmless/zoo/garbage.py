"""gc callbacks, thresholds, freeze; what the script drops is gone at once."""

import gc
import weakref

import torch
from training import batches, show, small_model, train_step

seen = []
gc.callbacks.append(lambda phase, info: seen.append(phase))
gc.freeze()
for number in range(6):
    model = small_model(number)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in batches(14):
        loss = train_step(model, optimizer, batch)
        refs = [weakref.ref(loss), weakref.ref(batch[0])]
    show("loss", loss)
    gc.disable()
    watched = [weakref.ref(model), weakref.ref(optimizer), weakref.ref(model[0].weight)]
    del model, optimizer, loss, batch
    show("alive without a collection:", [ref() is not None for ref in (*watched, *refs)])
    gc.enable()
    gc.collect()
    show("alive:", [ref() is not None for ref in (*watched, *refs)])
show(gc.get_threshold(), gc.isenabled(), len(gc.callbacks), len(gc.garbage), gc.get_debug())
