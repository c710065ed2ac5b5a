"""What frameworks add to a script's collectives, as docs/frameworks.md has it: calls and bytes.

Each figure follows from the models and steps of `tests/scripts/adds_*.py`; of
pickled objects from their lengths, which the script prints.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import NamedTuple

FLOAT, LONG, INT = 4, 8, 4


class Row(NamedTuple):
    """A row: the table's first two columns, and what is told.

    Attributes:
        calls: So many over the whole run, …
        nbytes: … with so many bytes; or from what the script has printed, and the folder it had.
    """

    framework: str
    purpose: str
    op: str
    dtype: str
    calls: int
    nbytes: int | Callable[[dict[str, int], str], int] = 0


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def shapes(*tensors: int) -> int:
    """DDP compares each parameter's sizes and strides: two numbers a dimension."""
    return LONG * sum(2 * dimensions for dimensions in tensors)


# -- adds_torch.py: a model with a norm and an unused layer, then one of a single layer
STEPS, UNEVEN, MORE = 4, 3, 2
PARTLY = FLOAT * (linear(8, 8) + 2 * 8 + linear(8, 4) + linear(8, 2))
RUNNING = FLOAT * 2 * 8
ONE = FLOAT * linear(8, 8)
TWO = FLOAT * (linear(8, 8) + linear(8, 4))

TORCH = [
    Row("DDP", "shapes of parameters, at start", "all_gather", "int64", 2, 2 * LONG),
    Row("DDP", "shapes of parameters, at start", "broadcast", "int64", 2,
        shapes(2, 1, 1, 1, 2, 1, 2, 1) + shapes(2, 1)),
    Row("DDP", "parameters and buffers, at start", "broadcast", "float32", 2,
        PARTLY + RUNNING + ONE),
    Row("DDP", "parameters and buffers, at start", "broadcast", "int64", 1, LONG),
    Row("DDP", "buffers", "broadcast", "float32", STEPS, STEPS * RUNNING),
    Row("DDP", "buffers", "broadcast", "int64", STEPS, STEPS * LONG),
    Row("DDP", "which parameters were used", "all_reduce", "int32", STEPS, STEPS * 8 * INT),
    # Two parameters and how many buckets there are; then the one bucket's length.
    Row("DDP", "rebuilt buckets' layout", "broadcast", "int32", 2, 3 * INT + INT),
    # As the rank sees it that joins first: the other one has `MORE` steps.
    Row("join()", "ranks that still have input", "all_reduce", "float32",
        UNEVEN + STEPS + MORE + 1, FLOAT * (UNEVEN + STEPS + MORE + 1)),
    Row("join()", "whether gradients are due", "all_reduce", "float32",
        UNEVEN + MORE + STEPS, FLOAT * (UNEVEN + MORE + STEPS)),
    Row("join()", "zero gradients of a rank that has joined", "all_reduce", "float32",
        MORE, MORE * ONE),
    Row("join()", "the final model", "all_reduce", "int64", 1, LONG),
    Row("join()", "the final model", "broadcast", "float32", 1, ONE),
    Row("ZeroRedundancyOptimizer", "updated parameters", "broadcast", "float32",
        2 * STEPS, STEPS * ONE),
    Row("ZeroRedundancyOptimizer", "state, consolidated", "broadcast", "int64", 1, LONG),
    Row("ZeroRedundancyOptimizer", "state, consolidated", "broadcast", "uint8", 1,
        lambda told, _: told["zero broadcast"]),
    Row("fully_shard", "parameters", "all_gather", "float32", STEPS, STEPS * TWO // 2),
    Row("fully_shard", "gradients", "reduce_scatter", "float32", STEPS, STEPS * TWO),
    Row("clip_grad_norm_", "norm of the gradients", "all_reduce", "float32",
        STEPS, STEPS * 4 * FLOAT),
    Row("FSDP", "parameters", "all_gather", "float32", STEPS, STEPS * ONE // 2),
    Row("FSDP", "gradients", "reduce_scatter", "float32", STEPS, STEPS * ONE),
    Row("FSDP", "norm of the gradients", "all_reduce", "float32", STEPS, STEPS * FLOAT),
    Row("checkpoint", "plan of a save", "all_gather", "int64", 2, 2 * LONG),
    Row("checkpoint", "plan of a save", "gather", "uint8", 2, lambda told, _: told["save gather"]),
    Row("checkpoint", "plan of a save", "broadcast", "int64", 2, 2 * LONG),
    Row("checkpoint", "plan of a save", "broadcast", "uint8", 1,
        lambda told, _: told["save broadcast"]),
    Row("checkpoint", "plan of a save", "scatter", "int64", 1, 2 * LONG),
    Row("checkpoint", "plan of a save", "scatter", "uint8", 1,
        lambda told, _: told["save scatter"]),
    Row("checkpoint", "plan of a load", "all_gather", "int64", 2, 2 * LONG),
    Row("checkpoint", "plan of a load", "all_gather", "uint8", 1,
        lambda told, _: told["load all_gather"]),
    Row("checkpoint", "plan of a load", "gather", "uint8", 1, lambda told, _: told["load gather"]),
    Row("checkpoint", "plan of a load", "broadcast", "int64", 1, LONG),
    Row("checkpoint", "plan of a load", "scatter", "int64", 1, 2 * LONG),
    Row("checkpoint", "plan of a load", "scatter", "uint8", 1,
        lambda told, _: told["load scatter"]),
    Row("checkpoint", "the full state dict", "all_gather", "float32", 4, TWO // 2),
]  # fmt: skip

# -- adds_lightning.py: validation runs once as a check, and at the end of each epoch
EPOCHS, BATCHES = 2, 4
VALIDATIONS = 1 + EPOCHS
SMALL = FLOAT * linear(8, 4)
LIGHTNING = [
    Row("Lightning", "SIGTERM flag", "broadcast", "int64",
        EPOCHS * BATCHES, EPOCHS * BATCHES * LONG),
    Row("Lightning", "log(sync_dist=True) of a step", "barrier", "", EPOCHS * BATCHES),
    Row("Lightning", "log(sync_dist=True) of a step", "all_reduce", "float32",
        EPOCHS * BATCHES, EPOCHS * BATCHES * FLOAT),
    Row("Lightning", "logged mean of an epoch", "barrier", "", 2 * VALIDATIONS),
    Row("Lightning", "logged mean of an epoch", "all_reduce", "float32",
        VALIDATIONS, VALIDATIONS * FLOAT),
    Row("Lightning", "logged mean of an epoch", "all_reduce", "int64",
        VALIDATIONS, VALIDATIONS * LONG),
    Row("Lightning", "whether a checkpoint's file is there", "barrier", "", EPOCHS),
    Row("Lightning", "whether a checkpoint's file is there", "all_reduce", "int64",
        EPOCHS, EPOCHS * LONG),
    Row("Lightning", "end of a checkpoint", "barrier", "", EPOCHS),
    Row("Lightning", "where checkpoints go", "broadcast", "int64", 1, LONG),
    Row("Lightning", "where checkpoints go", "broadcast", "uint8", 1,
        lambda _, place: len(pickle.dumps(f"{place}/checkpoints"))),
    Row("Lightning", "where logs go", "broadcast", "int64", 1, LONG),
    Row("Lightning", "where logs go", "broadcast", "uint8", 1,
        lambda _, place: len(pickle.dumps(place))),
    Row("Lightning", "set-up", "barrier", "", 4),
    Row("Lightning", "the loader's set-up", "barrier", "", 2),
    Row("Lightning", "the loader's length", "barrier", "", 3),
    Row("Lightning", "the loader's length", "all_reduce", "int64", 3, 3 * LONG),
]  # fmt: skip

# -- adds_accelerate.py: two epochs of four batches of the whole world, then two without dispatching
BATCH, ROUNDS = 4, EPOCHS * 4
ACCELERATE = [
    # Of each batch what it is made of and whether it is the last; then that the epoch is over.
    Row("accelerate", "dispatch_batches: what is in the batch", "broadcast", "int64",
        ROUNDS + EPOCHS * 2, (ROUNDS + EPOCHS * 2) * 2 * LONG),
    Row("accelerate", "dispatch_batches: what is in the batch", "broadcast", "uint8",
        ROUNDS + EPOCHS * 2, lambda told, _: ROUNDS * (told["batch"] + told["more"])
        + EPOCHS * 2 * (told["none"] + told["over"])),
    Row("accelerate", "dispatch_batches: the whole batch", "broadcast", "float32",
        ROUNDS, ROUNDS * 2 * BATCH * 8 * FLOAT),
    Row("accelerate", "dispatch_batches: the whole batch", "broadcast", "int64",
        ROUNDS, ROUNDS * 2 * BATCH * LONG),
    Row("accelerate", "random state, for an epoch's order", "broadcast", "uint8",
        EPOCHS, lambda told, _: EPOCHS * told["random_state"]),
    Row("accelerate", "", "all_gather", "float32", 1, 3 * FLOAT),
]  # fmt: skip

# -- adds_trainer.py
TRAINED, LOGGED, SAVED, EVALUATED = 8, 8 // 2, 8 // 4, 8 // 4
EVALUATION_BATCHES = EVALUATED * 2  # 32 rows, 8 a rank
TENSORS = 16
TRAINER = [
    Row("HF Trainer", "tokens in the batch", "all_gather", "int64",
        TRAINED + EVALUATION_BATCHES, (TRAINED + EVALUATION_BATCHES) * LONG),
    Row("HF Trainer", "loss for the log", "all_gather", "float32", LOGGED, LOGGED * FLOAT),
    Row("HF Trainer", "operations so far", "all_gather", "float32", LOGGED, LOGGED * FLOAT),
    # A checkpoint comes after the log of its step, when there is nothing new: an integer 0.
    Row("HF Trainer", "operations so far", "all_gather", "int64",
        SAVED + 1, (SAVED + 1) * LONG),
    Row("HF Trainer", "results of an evaluation", "all_gather", "float32",
        EVALUATION_BATCHES, EVALUATION_BATCHES * 8 * FLOAT),
    Row("DDP", "which parameters were used", "all_reduce", "int32",
        TRAINED, TRAINED * TENSORS * INT),
]  # fmt: skip

ADDED = {"torch": TORCH, "lightning": LIGHTNING, "accelerate": ACCELERATE, "trainer": TRAINER}
"""By script."""
