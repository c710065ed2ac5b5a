"""What a viewer of a large run gets in place of its frames: a look at all of it, made by the hub.

A viewer that follows frames does the hub's work once more. Of a small run that is little, and every
frame is on the screen at once; of a thousand ranks it is most of a core. So above `MANY` ranks a
viewer asks, as often as it draws, for the run as the hub's last review has it. The hub encodes that
once for all viewers, and to who has it already it says so in one byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dpwatch.run.derive.downsample import few
from dpwatch.run.derive.summarize import rows_of, view
from dpwatch.run.model.snapshot import Curve, Run, RunView
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import Floats, Ints, packed, unpacked

POINTS = 64
"""Of each row's curves, at most so many are sent."""


class Curves(msgspec.Struct, array_like=True):
    """A row's curves."""

    step_ms_at: Ints
    step_ms: Floats
    peak_bytes_at: Ints
    peak_bytes: Floats


class Look(msgspec.Struct, array_like=True):
    """A run as a screen shows it.

    Attributes:
        number: Frames that the hub had applied; the viewer sends it with its next question.
        view: All but the rows' curves, which are …
        curves: … packed here.
    """

    number: int
    view: RunView
    curves: list[Curves]


_encoder = msgspec.msgpack.Encoder(enc_hook=packed)
_decoder = msgspec.msgpack.Decoder(Look, dec_hook=unpacked)


def encode(state: RunState, number: int, run: Run) -> bytes:
    """A look at a run that has been reviewed at that number of frames."""
    whole = view(state, run=run, curves=False)
    lanes = rows_of(state)
    step_ms = few([lane.step_ms for lane in lanes], POINTS)
    peak_bytes = few([lane.peak_bytes for lane in lanes], POINTS)
    curves = [Curves(*a, *b) for a, b in zip(step_ms, peak_bytes, strict=True)]
    return _encoder.encode(Look(number, whole, curves))


def decode(data: bytes | memoryview) -> Look:
    """The look that was encoded, its view whole.

    Raises:
        msgspec.MsgspecError, RecursionError, UnicodeDecodeError: It is none.
    """
    look = _decoder.decode(data)
    history = msgspec.structs.replace(
        look.view.history,
        rank_step_ms=tuple(_curve(each.step_ms_at, each.step_ms) for each in look.curves),
        rank_peak_bytes=tuple(_curve(each.peak_bytes_at, each.peak_bytes) for each in look.curves),
    )
    look.view = msgspec.structs.replace(look.view, history=history)
    return look


def _curve(steps: Sequence[int], values: Sequence[float]) -> Curve:
    return Curve(tuple(steps), tuple(values))
