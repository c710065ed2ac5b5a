"""A training loop of Lightning, if it is there: its hooks, progress, checkpoints.

needs: module lightning
"""

import logging
import warnings

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import lightning
import torch
from training import batches, fingerprint, loss_of, show, small_model


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = small_model()

    def training_step(self, batch):
        loss = loss_of(self.model, batch)
        show("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


data = torch.utils.data.DataLoader(list(batches()), batch_size=None)
module = Module()
trainer = lightning.Trainer(
    max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
    accelerator="cpu", enable_checkpointing=False,
)  # fmt: skip
trainer.fit(module, data)
show(fingerprint(module.parameters()), trainer.global_step)
