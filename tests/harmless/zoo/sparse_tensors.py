"""Sparse gradients of an embedding with SparseAdam, and products with sparse matrices."""

import torch
from training import fingerprint, seed, show

seed()
table = torch.nn.Embedding(50, 8, sparse=True)
optimizer = torch.optim.SparseAdam(table.parameters(), lr=1e-2)
matrix = torch.randn(6, 12).relu().to_sparse()
rows = torch.randn(6, 12).relu().to_sparse_csr()
for _ in range(24):
    given = table(torch.randint(50, (12,)))
    loss = torch.sparse.mm(matrix, given).pow(2).mean() + (rows @ given).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    show("gradient", str(table.weight.grad.layout), table.weight.grad._nnz())
    optimizer.step()
    show("loss", loss)
show("parameters", fingerprint(table.parameters()))
