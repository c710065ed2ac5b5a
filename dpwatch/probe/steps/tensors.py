"""Reads the script's tensors without calling any of its code.

Even reading a tensor's `shape` calls into a `TorchFunctionMode` or a subclass's
`__torch_function__`, and any operation reaches a `TorchDispatchMode`. So attributes are read with
torch functions disabled (`no_torch_function`), values are read from memory, and a subclass with its
own `__torch_dispatch__` is not read at all.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import torch

no_torch_function = torch._C.DisableTorchFunction
"""Context manager: attributes read inside it bypass function modes and subclasses."""

_DISABLED = torch._C._disabled_torch_dispatch_impl
_C_FLOATS = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


def is_plain(value: Any) -> bool:
    """Whether reading a value's attributes runs only torch's own code."""
    kind = type(value)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        return True
    return issubclass(kind, torch.Tensor) and (
        getattr(kind, "__torch_dispatch__", _DISABLED)
        in (_DISABLED, torch.Tensor.__torch_dispatch__)
    )


def rows_of(value: Any) -> int | None:
    """Length of a tensor's first dimension, None if it has none or is not a tensor."""
    if not is_plain(value):
        return None
    with no_torch_function():
        rows = value.shape[0] if value.dim() else None
    return rows if type(rows) is int else None  # not a symbol of torch.export


def scalar_of(root: Any) -> float | None:
    """The value of a one-element tensor in host memory, None for any other.

    It is read from memory: calling `item()` would add an operation to the script's. On an
    accelerator, reading it would wait for the device.
    """
    if not is_plain(root):
        return None
    with no_torch_function():
        if not root.is_cpu or not root.is_floating_point() or root.numel() != 1:
            return None
        try:
            address = root.data_ptr()
            sign = -1.0 if root.is_neg() else 1.0
        except RuntimeError:  # inside a functorch transform, or fake
            return None
        value = _value_at(address, root.dtype) if address else None
    return None if value is None else sign * value


def _value_at(address: int, dtype: torch.dtype) -> float | None:
    kind = _C_FLOATS.get(dtype)
    if kind is not None:
        return float(kind.from_address(address).value)
    bits = bytes((ctypes.c_char * 2).from_address(address))
    if dtype is torch.bfloat16:  # the upper half of a float32
        return float(struct.unpack("=f", b"\0\0" + bits)[0]) if _LITTLE else None
    return float(struct.unpack("=e", bits)[0]) if dtype is torch.float16 else None


_LITTLE = struct.pack("=H", 1)[0] == 1


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The plain tensor this rank holds: a DTensor's shard, else the tensor itself."""
    shard: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return shard
