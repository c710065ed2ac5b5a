#!/usr/bin/env bash
# Hugging Face's Trainer trains with gradients that are accumulation steps × ranks too large when
# the model's forward takes **kwargs and computes a mean loss of its own.
#
# Trainer takes a forward with **kwargs for one that divides its loss by `num_items_in_batch`. It
# then leaves out the division by the accumulation steps, and multiplies by the number of ranks.
# Loss and gradients grow alike, and nothing is said. The same model without **kwargs trains as it
# should. Known upstream for one process: huggingface/transformers issue 47688.
#
# Exits 0 while that holds, 1 once it has changed. Needs network, room for torch, a minute or two.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet \
    "torch==2.13.0" "transformers==5.24.0" "accelerate==1.15.0" "numpy" >/dev/null

cat >"$place/train.py" <<'PYTHON'
import json
import os
import tempfile

import torch
import transformers
from torch import nn

ACCUMULATE = 4


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x, labels=None):
        out = self.linear(x).squeeze(-1)
        return {"loss": nn.functional.mse_loss(out, labels), "logits": out}


class TakesKwargs(Plain):
    def forward(self, x, labels=None, **kwargs):
        return super().forward(x, labels)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        draws = torch.Generator().manual_seed(index)
        return {"x": torch.randn(4, generator=draws), "labels": torch.tensor(3.0)}


def first_step(model):
    with tempfile.TemporaryDirectory() as place:
        arguments = transformers.TrainingArguments(
            output_dir=place, max_steps=1, gradient_accumulation_steps=ACCUMULATE,
            per_device_train_batch_size=4, logging_steps=1, report_to=[], disable_tqdm=True,
            use_cpu=True, save_strategy="no", max_grad_norm=0, optim="sgd",
            ddp_find_unused_parameters=False,
        )
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows())
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        (log,) = [each for each in trainer.state.log_history if "loss" in each]
        return log["loss"], log["grad_norm"]


told = []
for kind in (Plain, TakesKwargs):
    transformers.set_seed(0)
    told.append(first_step(kind()))
ranks = int(os.environ.get("WORLD_SIZE", "1"))
if os.environ.get("RANK", "0") == "0":
    (loss, norm), (with_kwargs, its_norm) = told
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, ranks {ranks}, "
          f"accumulation {ACCUMULATE}")
    print(f"  forward(x, labels):           loss {loss:8.4f}  gradient norm {norm:8.4f}")
    print(f"  forward(x, labels, **kwargs): loss {with_kwargs:8.4f}  gradient norm {its_norm:8.4f}")
    print(f"  {with_kwargs / loss:.2f} times the loss, {its_norm / norm:.2f} times the gradient")
    expected = ACCUMULATE * ranks
    if not all(abs(ratio / expected - 1) < 1e-3 for ratio in (with_kwargs / loss, its_norm / norm)):
        raise SystemExit(f"changed: both were {expected} times")
if ranks > 1:
    torch.distributed.destroy_process_group()
PYTHON

export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
"$place/venv/bin/python" "$place/train.py"
"$place/venv/bin/torchrun" --nproc-per-node 2 --master-port "${MASTER_PORT:-29741}" "$place/train.py"
echo "unchanged"
