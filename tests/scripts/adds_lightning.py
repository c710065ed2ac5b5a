"""What Lightning adds: python adds_lightning.py PLACE, which starts its second rank itself."""

import sys
import warnings

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, BATCHES, BATCH = 2, 4, 8


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 4)

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, index):
        loss = self.loss(batch)
        self.log("step", loss, sync_dist=True)
        return loss

    def validation_step(self, batch, index):
        self.log("validation", self.loss(batch), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


warnings.simplefilter("ignore")
lightning.seed_everything(0)
data = TensorDataset(torch.randn(2 * BATCHES * BATCH, 8), torch.randint(0, 4, (64,)))
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_epochs=EPOCHS,
    limit_val_batches=2,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir=sys.argv[1],
)
trainer.fit(Classifier(), DataLoader(data, batch_size=BATCH), DataLoader(data, batch_size=BATCH))
