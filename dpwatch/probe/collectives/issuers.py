"""Sums what frameworks issue, by function and kind of collective; on the sender thread."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from dpwatch.probe.stack.frameworks import NO_PURPOSE, function_of, package_of
from dpwatch.wire.messages import Issuer

if TYPE_CHECKING:
    from types import CodeType

    import torch

    from dpwatch.probe.collectives.calls import Call
    from dpwatch.probe.stack.frameworks import Purpose

    _Key = tuple[int, str, str, int, torch.dtype | None]

MOST_ISSUERS = 64
"""Kinds that are reported; later ones appear only in the totals of collectives."""

_TEXT = 256
"""Limit of a name, in characters."""


_NOT_FRAMEWORKS = frozenset(("", "dpwatch"))  # the bundled trainer is a script like any other


class _Sum:
    """The calls of one function and kind so far. Keeps the code alive, so its id stays unique."""

    __slots__ = ("calls", "code", "first_step", "last_step", "nbytes", "purpose")

    def __init__(self, code: CodeType, purpose: Purpose | None, step: int) -> None:
        self.code, self.purpose = code, purpose
        self.calls = self.nbytes = 0
        self.first_step = self.last_step = step


class Issuers:
    """Sums calls issued by frameworks, in groups of which this process is the first rank."""

    def __init__(self) -> None:
        self._sums: dict[_Key, _Sum] = {}
        self._steps = 0

    def add(self, call: Call) -> None:
        """Counts a call, if a framework issued it."""
        self._steps = max(self._steps, call.step + 1)
        group = call.group
        if call.op.peer is not None or not group.is_first or (whose := _whose(call)) is None:
            return
        key = id(whose[0]), call.op.name, group.name, group.size, call.dtype
        found = self._sums.get(key)
        if found is None:
            if len(self._sums) >= MOST_ISSUERS:
                return
            found = self._sums[key] = _Sum(*whose, call.step)
        found.calls += 1
        found.nbytes += call.nbytes
        found.last_step = max(found.last_step, call.step)

    def totals(self) -> list[Issuer]:
        """All sums so far."""
        return [_issuer(key, found, self._steps) for key, found in self._sums.items()]


def _issuer(key: _Key, found: _Sum, steps: int) -> Issuer:
    _, op, group, ranks, dtype = key
    code, purpose = found.code, found.purpose
    return Issuer(
        framework=(purpose.framework if purpose else package_of(code.co_filename))[:_TEXT],
        function=function_of(code)[:_TEXT],
        purpose=purpose.text if purpose else "",
        op=op,
        group=group,
        ranks=ranks,
        dtype="" if dtype is None else str(dtype).removeprefix("torch."),
        calls=found.calls,
        nbytes=found.nbytes,
        first_step=found.first_step,
        last_step=found.last_step,
        steps=steps,
    )


def _whose(call: Call) -> tuple[CodeType, Purpose | None] | None:
    """The framework function that issued a call, and its purpose; None if there is none."""
    if call.owner is not None:
        return call.owner if _fits(call.owner[1], call) else None
    if call.place is not None and _is_framework(call.place[0].co_filename):
        return call.place[0], None
    return None


@functools.lru_cache(maxsize=1024)
def _is_framework(path: str) -> bool:
    return package_of(path) not in _NOT_FRAMEWORKS


def _fits(purpose: Purpose, call: Call) -> bool:
    """Whether a call is of the kind that the purpose describes."""
    if not purpose.native:
        return purpose is not NO_PURPOSE
    dtype = str(call.dtype).removeprefix("torch.")
    return not call.from_python and (call.op.name, dtype) == (purpose.op, purpose.dtype)
