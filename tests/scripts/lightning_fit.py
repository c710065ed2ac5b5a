"""Lightning, which starts its second rank itself: python lightning_fit.py [steps]."""

import os
import sys
import warnings

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        place = f"{self.global_rank} {self.global_step} {index}"
        print(f"loss {place} {loss.item().hex()}\n", end="", flush=True)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        self.log("val", nn.functional.cross_entropy(self.net(x), y), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


warnings.simplefilter("ignore")
lightning.seed_everything(0)
data = TensorDataset(torch.randn(512, 64), torch.randint(0, 10, (512,)))
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_steps=steps,
    accumulate_grad_batches=2,
    limit_val_batches=2,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir=os.environ.get("TMPDIR", "/tmp"),
)
trainer.fit(Classifier(), DataLoader(data, batch_size=8), DataLoader(data, batch_size=8))
