"""Recurrent layers, packed sequences, attention, norms and embedding bags, in float32 and bfloat16.

variants: float32 | bfloat16
"""

import sys

import torch
from torch import nn
from training import fingerprint, seed, show

seed()
dtype = getattr(torch, sys.argv[1])
embed, bag = nn.Embedding(20, 16), nn.EmbeddingBag(20, 16)
lstm, attention = (
    nn.LSTM(16, 16, batch_first=True),
    nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
)
model = nn.ModuleList([embed, bag, lstm, attention, nn.BatchNorm1d(16), nn.Linear(16, 1)]).to(dtype)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(24):
    tokens = torch.randint(20, (4, 7))
    packed = nn.utils.rnn.pack_padded_sequence(embed(tokens), [7, 6, 4, 2], batch_first=True)
    unpacked, _ = nn.utils.rnn.pad_packed_sequence(lstm(packed)[0], batch_first=True)
    hidden = model[4]((attention(unpacked) + bag(tokens).unsqueeze(1)).mean(1))
    loss = model[5](hidden).pow(2).mean() + hidden.cumprod(1).mean() + hidden.prod(1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    show("loss", loss.float())
show("parameters", fingerprint(model.parameters()))
