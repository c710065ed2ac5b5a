"""What Hugging Face's Trainer adds: torchrun --nproc-per-node 2 adds_trainer.py PLACE."""

import sys

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

STEPS, LOG, EVALUATE, ROWS = 8, 2, 4, 32


class Sequences(Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        tokens = (torch.arange(16) + index) % 96
        return {"input_ids": tokens, "labels": tokens}


set_seed(0)
config = GPT2Config(
    vocab_size=96,
    n_positions=16,
    n_embd=32,
    n_layer=1,
    n_head=2,
    bos_token_id=None,
    eos_token_id=None,
)
trainer = Trainer(
    model=GPT2LMHeadModel(config),
    args=TrainingArguments(
        output_dir=sys.argv[1],
        max_steps=STEPS,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=8,
        logging_steps=LOG,
        eval_strategy="steps",
        eval_steps=EVALUATE,
        save_steps=EVALUATE,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    ),
    train_dataset=Sequences(),
    eval_dataset=Sequences(),
)
trainer.train()
torch.distributed.destroy_process_group()
