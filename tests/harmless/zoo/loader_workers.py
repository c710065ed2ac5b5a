"""DataLoader with workers, whose batches depend on seeds, and whose worker may raise.

exit: 0 | 0 | 0 | 0 | 1
variants: none | fork | spawn | persistent | failing
"""

import sys

import torch
from torch.utils.data import DataLoader, Dataset
from training import loss_of, random_states, show, small_model


class Noise(Dataset):
    def __len__(self):
        return 160

    def __getitem__(self, index):
        if how == "failing" and index == 130:
            raise KeyError("a bad file")
        return torch.rand(8) + index / 160, torch.rand(4)


how = sys.argv[1]
if __name__ == "__main__":
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {
        "none": {},
        "spawn": {"multiprocessing_context": "spawn"},
        "persistent": {"persistent_workers": True},
    }
    workers = {"none": 0, "failing": 1}.get(how, 2)  # of two, either may be first to tell
    loader = DataLoader(
        Noise(), batch_size=8, shuffle=True, num_workers=workers,
        generator=torch.Generator().manual_seed(3), **options.get(how, {}),
    )  # fmt: skip
    for epoch in range(2):
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            show(epoch, "loss", loss)
    show(*random_states())
