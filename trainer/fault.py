"""A delay injected into training: `KIND:RANK:MS`. Torch-free; `fault_injection` injects it."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("data", "forward", "backward", "optimizer", "host")
ON_DEVICES = ("forward", "backward")
"""What every device does if one process drives several; the rest only its first device does."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Fault:
    """Delays one rank by `delay_ms` in each step.

    Attributes:
        kind: One of `KINDS`; `host` is time between steps.
        rank: The delayed rank, or the device of a process that drives several.
        delay_ms: Milliseconds.
    """

    kind: str
    rank: int
    delay_ms: float


def parse_fault(text: str) -> Fault:
    """Parses `KIND:RANK:MS`.

    Raises:
        ValueError: It is invalid; the message says how to write one.
    """
    kind, _, rest = text.partition(":")
    rank, _, delay = rest.partition(":")
    if kind not in KINDS:
        raise ValueError(f"--fault {text}: unknown kind {kind!r}; choose from: {', '.join(KINDS)}")
    try:
        fault = Fault(kind=kind, rank=int(rank), delay_ms=float(delay))
    except ValueError:
        raise ValueError(f"--fault {text}: write KIND:RANK:MS, such as forward:2:50") from None
    if fault.rank < 0 or not 0 < fault.delay_ms < float("inf"):
        raise ValueError(f"--fault {text}: give a rank from 0 on and milliseconds above 0")
    return fault
