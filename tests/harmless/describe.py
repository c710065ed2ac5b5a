"""Values as text that is equal only if every bit, stride and graph is."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from tests.harmless.describe_text import without_addresses

_MOST_NODES = 200
KEPT_BYTES = 1 << 16
"""Of a tensor's bytes, in a detailed description."""


def lines(value: Any, *, detailed: bool = False, name: str = "") -> list[str]:
    """One line a tensor or plain value, containers taken apart.

    Args:
        value: Anything an operator returns.
        detailed: With the tensors' bytes in hexadecimal, not just a hash of them.
        name: What the lines begin with.
    """
    if isinstance(value, torch.Tensor):
        return [f"{name} {_tensor(value, detailed=detailed)}"]
    if isinstance(value, dict):
        items = [(f"{name}[{key!r}]", each) for key, each in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{name}[{index}]", each) for index, each in enumerate(value)]
    else:
        return [f"{name} {type(value).__name__} {without_addresses(repr(value))}"]
    found = [f"{name} {type(value).__name__} of {len(items)}"]
    for label, each in items:
        found += lines(each, detailed=detailed, name=label)
    return found


def digest(described: list[str]) -> str:
    """Sixteen hexadecimal digits that stand for a description."""
    return hashlib.sha1("\n".join(described).encode()).hexdigest()[:16]


def _tensor(tensor: torch.Tensor, *, detailed: bool) -> str:
    facts = [
        type(tensor).__name__,
        str(tensor.dtype).removeprefix("torch."),
        str(tuple(tensor.shape)),
        str(tensor.layout).removeprefix("torch."),
        str(tensor.device),
        f"requires_grad={tensor.requires_grad} leaf={tensor.is_leaf}",
        f"graph={_graph(tensor.grad_fn)}",
    ]
    if tensor.layout is torch.strided and not tensor.is_nested:
        facts.append(f"strides={tensor.stride()} offset={tensor.storage_offset()}")
        facts.append(f"conj={tensor.is_conj()} neg={tensor.is_neg()}")
    raw = b"".join(_bytes(part) for part in _parts(tensor))
    facts.append(f"bits={hashlib.sha1(raw).hexdigest()[:16]}")
    if detailed:
        facts.append(f"hex={raw[:KEPT_BYTES].hex()}")
    return " ".join(facts)


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The strided tensors that a tensor consists of."""
    plain = tensor.detach()
    if plain.is_nested:
        return [plain.values()] if plain.layout is torch.jagged else list(plain.unbind())
    if plain.layout is torch.sparse_coo:
        return [plain._indices(), plain._values()]
    if plain.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [plain.crow_indices(), plain.col_indices(), plain.values()]
    if plain.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [plain.ccol_indices(), plain.row_indices(), plain.values()]
    if plain.is_mkldnn:
        return [plain.to_dense()]
    return [plain]


def _bytes(tensor: torch.Tensor) -> bytes:
    if tensor.device.type == "meta":
        return b""
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    plain = tensor.resolve_conj().resolve_neg()
    flat = torch.empty(plain.shape, dtype=plain.dtype).copy_(plain).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _graph(node: Any) -> str:
    """The names of the autograd graph's nodes, in the order of a walk from its root."""
    names: list[str] = []
    waiting, seen = [node], set()
    while waiting and len(names) < _MOST_NODES:
        here = waiting.pop()
        if here is None or here in seen:
            continue
        seen.add(here)
        names.append(here.name())
        waiting += [each for each, _ in reversed(here.next_functions)]
    return ">".join(names) or "-"
