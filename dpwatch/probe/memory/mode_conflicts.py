"""Detects the start of what the exact ledger must not interfere with: compilation and functorch.

Both fail or behave differently below a dispatch mode, so the mode must be removed before they
start. In sampled steps only, the few private functions of torch that they all go through are
wrapped. If a version of torch lacks one, the ledger notices afterwards.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

COMPILES = "torch.compile is in use: its kernels allocate out of sight"
TRANSFORMS = "functorch transforms are in use"

_INIT = "__init__"
_NESTING = (
    ("torch._functorch.eager_transforms", "grad_increment_nesting"),
    ("torch._functorch.eager_transforms", "jvp_increment_nesting"),
    ("torch._functorch.vmap", "vmap_increment_nesting"),
)


class ConflictHooks:
    """Hooks on those functions, installed while `open`.

    Args:
        begins: Called with the reason, on the thread that starts it, before it does.
    """

    def __init__(self, begins: Callable[[str], None]) -> None:
        self._begins = begins
        self._replaced: list[tuple[Any, str, Any]] = []

    def open(self) -> None:
        """Installs the hooks."""
        context = getattr(sys.modules.get("torch._dynamo.eval_frame"), "_TorchDynamoContext", None)
        if context is not None:
            self._wrap(context, _INIT, COMPILES)
        for module, name in _NESTING:
            if module in sys.modules:
                self._wrap(sys.modules[module], name, TRANSFORMS)

    def close(self) -> None:
        """Removes the hooks."""
        while self._replaced:
            owner, name, original = self._replaced.pop()
            setattr(owner, name, original)

    def _wrap(self, owner: Any, name: str, why: str) -> None:
        original = vars(owner).get(name)
        if original is None:
            return

        @functools.wraps(original)
        def entry(*args: Any, **kwargs: Any) -> Any:
            if name != _INIT or _compiles(*args[1:], **kwargs):
                self._begins(why)
            return original(*args, **kwargs)

        setattr(owner, name, entry)
        self._replaced.append((owner, name, original))


def compile_in_use() -> bool:
    """Whether dynamo has compiled anything in this process, or has been asked to."""
    convert = sys.modules.get("torch._dynamo.convert_frame")
    frames = sys.modules.get("torch._dynamo.eval_frame")
    backends = getattr(frames, "cached_backends", {})
    asked = any(map(_compiles, list(backends.values())))
    return asked or getattr(convert, "FRAME_COUNTER", 0) > 0


def _compiles(callback: Any = None, *_: Any, **__: Any) -> bool:
    """Whether a dynamo context compiles; one without a callback disables compilation."""
    return callback is not None
