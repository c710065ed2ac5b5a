"""Several tensors in one piece of memory, so that one collective moves them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lay_out(tensors: Sequence[Tensor], *, multiple_of: int = 1) -> Tensor:
    """Moves tensors into one flat tensor: they keep their values and become views of it.

    Args:
        tensors: At least one, all of one type and device.
        multiple_of: The flat tensor is padded with zeros to a multiple of this many elements.

    Returns:
        The flat tensor: the tensors in order, then the padding.
    """
    elements = sum(tensor.numel() for tensor in tensors)
    flat = torch.zeros(-(-elements // multiple_of) * multiple_of,
                       dtype=tensors[0].dtype, device=tensors[0].device)  # fmt: skip
    for tensor, part in zip(tensors, parts_of(flat, tensors), strict=True):
        part.copy_(tensor.detach())
        tensor.data = part
    return flat


def parts_of(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat tensor, in the shapes and order of `tensors`."""
    parts, start = [], 0
    for tensor in tensors:
        parts.append(flat[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
    return parts
