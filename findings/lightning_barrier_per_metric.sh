#!/usr/bin/env bash
# Lightning issues two collectives for each metric that is logged with sync_dist=True, in each step:
# a barrier, and then the all-reduce of its 4 bytes. Ten metrics are twenty round trips a step.
#
# The all-reduce waits for all ranks by itself; the barrier before it adds a round trip. `log_dict`
# joins neither. Seen over gloo on a CPU.
#
# Exits 0 while that holds, 1 once it has changed. Needs network, room for torch, a minute or two.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "lightning==2.6.6" "numpy" >/dev/null

cat >"$place/train.py" <<'PYTHON'
import os
import sys
import warnings
from collections import Counter

import lightning
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

METRICS, STEPS = 10, 5
counted = Counter()


def count(name):
    original = getattr(dist, name)

    def function(*args, **kwargs):
        counted[name] += 1
        return original(*args, **kwargs)

    setattr(dist, name, function)


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 4)

    def training_step(self, batch, index):
        before = counted.copy()
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        values = {f"metric_{n}": loss.detach() for n in range(METRICS)}
        self.log_dict(values, sync_dist=True)
        counted["in log_dict: barriers"] += counted["barrier"] - before["barrier"]
        counted["in log_dict: all-reduces"] += counted["all_reduce"] - before["all_reduce"]
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


count("barrier")
count("all_reduce")
warnings.simplefilter("ignore")
data = TensorDataset(torch.randn(80, 8), torch.randint(0, 4, (80,)))
trainer = lightning.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=STEPS, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    default_root_dir=sys.argv[1],
)
trainer.fit(Model(), DataLoader(data, batch_size=8))
if trainer.global_rank == 0:
    found = [counted[f"in log_dict: {what}"] / STEPS for what in ("barriers", "all-reduces")]
    print(f"lightning {lightning.__version__}, torch {torch.__version__}, "
          f"{METRICS} metrics in one log_dict(sync_dist=True)")
    print(f"  a step: {found[0]:g} barriers and {found[1]:g} all-reduces of 4 bytes")
    if found != [METRICS, METRICS]:
        raise SystemExit("changed: it was a barrier and an all-reduce a metric")
PYTHON

export OMP_NUM_THREADS=1 MASTER_PORT="${MASTER_PORT:-29743}"
"$place/venv/bin/python" "$place/train.py" "$place" 2>"$place/errors" || { cat "$place/errors"; exit 1; }
echo "unchanged"
