"""A Hugging Face Trainer: accelerate launch --multi_gpu --num_processes N hf_trainer.py [steps]."""

import os
import sys
import tempfile

import torch
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20


class Sequences(Dataset):
    def __init__(self):
        draws = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, 96, (256, 16), generator=draws)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class Tell(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            loss = float(logs["loss"]).hex()
            print(f"loss {state.global_step} {loss}\n", end="", flush=True)


set_seed(0)
config = GPT2Config(
    vocab_size=96,
    n_positions=16,
    n_embd=32,
    n_layer=2,
    n_head=2,
    bos_token_id=None,
    eos_token_id=None,
)
with tempfile.TemporaryDirectory() as place:
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(
            output_dir=place,
            max_steps=steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            ddp_find_unused_parameters=False,
            seed=0,
        ),
        train_dataset=Sequences(),
        callbacks=[Tell()],
    )
    trainer.remove_callback(PrinterCallback)  # it prints times
    trainer.train()
    total = sum(p.double().sum() for p in trainer.model.parameters())
print(f"parameters {os.environ['RANK']} {total.item().hex()}\n", end="", flush=True)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
