"""What the scripts here share: a small model, its data, and printing to the last bit."""

import hashlib
import random
import traceback

import numpy
import torch
from torch import nn

torch.set_num_threads(1)
STEPS = 24
"""Short steps: a probe looks at the first ten, samples memory in some, and only counts the rest."""


def seed(number=0):
    torch.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number)


def small_model(number=0):
    seed(number)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def batches(steps=STEPS):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield torch.randn(32, 8, generator=generator), torch.randn(32, 4, generator=generator)


def loss_of(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).pow(2).mean()


def train_step(model, optimizer, batch):
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    optimizer.step()
    return loss


def train(model, optimizer, steps=STEPS):
    """Trains, and prints every loss."""
    for batch in batches(steps):
        show("loss", train_step(model, optimizer, batch))
    show("parameters", fingerprint(model.parameters()))


def show(*values):
    """Prints values; floats and tensors of one element in hexadecimal."""
    told = " ".join(str(_exact(value)) for value in values)
    print(f"{told}\n", end="", flush=True)  # in one piece, so that ranks don't mix their lines


def fingerprint(tensors):
    """A hash over all the tensors' bits."""
    told = hashlib.sha1()
    for tensor in tensors:
        told.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()[:16]


def random_states():
    """A hash of the state of every generator."""
    told = repr((random.getstate(), numpy.random.get_state(legacy=False)))
    return hashlib.sha1(told.encode()).hexdigest()[:16], fingerprint([torch.get_rng_state()])


def frames_of(error):
    """Functions in a traceback, without the probe's and torch's that they stand for."""
    frames = traceback.extract_tb(error.__traceback__)
    replaced = ("_wrapped_call_impl", "_engine_run_backward")
    return [f.name for f in frames if "/dpwatch/" not in f.filename and f.name not in replaced]


def _exact(value):
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return float(value).hex() if value.numel() == 1 else fingerprint([value])
    return value.hex() if isinstance(value, float) else value
