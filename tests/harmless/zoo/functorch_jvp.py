"""Forward-mode derivatives: jvp, dual numbers, and the Hessian as jacfwd over jacrev."""

import torch
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev, jvp
from training import batches, show, small_model, train_step

model = small_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in batches(16):
    inputs, _ = batch
    _, tangent = jvp(model, (inputs,), (torch.ones_like(inputs),))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs, torch.ones_like(inputs))
        other = forward_ad.unpack_dual(model(dual)).tangent
    hessian = jacfwd(jacrev(lambda x: model(x).sum()))(inputs[0])
    show("jvp", tangent.sum(), other.sum(), hessian.sum())
    show("loss", train_step(model, optimizer, batch))
