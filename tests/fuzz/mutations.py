"""Frames as a stranger may send them: real ones, damaged byte by byte or value by value."""

import copy
import random

import msgspec

from dpwatch.wire import codec
from dpwatch.wire.batching import pack
from dpwatch.wire.messages import (
    Batch,
    Beat,
    ByCategory,
    Bye,
    Collective,
    DeviceInfo,
    Gpu,
    Hello,
    Memory,
    Position,
    Refused,
    Step,
    Tick,
    Transfer,
)
from tests.frames import MS, START_NS, batch, ddp_run, dp_run

EXTREMES = [
    *(0, 1, -1, 127, 1 << 20, 1 << 31, 1 << 40, 1 << 43, (1 << 53) + 1, 1 << 61),
    *((1 << 63) - 1, -(1 << 63), (1 << 64) - 1, 10**9),
    *(float("nan"), float("inf"), -float("inf"), 1e308, -0.0, 0.5),
    *(None, True, "", "x" * 300, "x" * 100_000, "\x1b]0;owned\x07", "\u202e[red]", b"\xff\xfe"),
    *([], [[]], [None] * 100, {}, {"a": 1}),
]

FIRST = 100
"""Strangers' ranks begin here, so that they are not taken for those whose figures are checked."""


def every_kind() -> Batch:
    """A frame with one record of each kind, all of its fields filled."""
    some = ByCategory(1, 2, 3, 4, 5, 6, 7)
    place = Position("default", 4, 7, "all_reduce", 8, "float32", START_NS, 3, True, "a.py:1", [1])
    step = Step(0, 3, START_NS, START_NS + MS, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1.5, 4)
    call = Collective(3, "all_reduce", "default", 4, 7, 1024, START_NS, START_NS + 9, 3, "float32",
                      0, "backward", 5, "train.py:77", True, 1024)  # fmt: skip
    return batch(
        *pack([step, step, call, call]),
        Hello(4, 1, "ddp", "gloo", [DeviceInfo("cpu", "cpu", 9, "a")], 1, 4, "t", 9, 2, "2.13"),
        step,
        Memory(0, 3, 5, 9, some, some, "ledger"),
        call,
        Transfer(3, "reduce", 1, 0, 512, 99),
        Beat(3, "forward", 1, 0.5, "train.py:7 main", 5, [place], ["train.py:7 main"]),
        Gpu(0, 0.5, 60.0, 300.0, 5, 9),
        Refused("why"),
        Tick(),
        Bye("failed", "why", 1),
    )  # fmt: skip


def real_frames() -> list[Batch]:
    """What is damaged: every kind, and some of a `ddp` and of a `dp` run."""
    frames = [every_kind(), *ddp_run(steps=4, ranks=4), *dp_run(steps=2, devices=3)]
    return [msgspec.structs.replace(each, rank=each.rank + FIRST) for each in frames]


class Mutator:
    """An endless, seeded stream of damaged frames."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        batches = real_frames()
        self._frames = [codec.encode(each) for each in batches]
        self._plain = [msgspec.msgpack.encode(msgspec.to_builtins(each)) for each in batches]

    def next(self) -> bytes:
        """Another frame."""
        if self._random.random() < 0.4:
            return self._by_value()
        frame = bytearray(self._random.choice(self._frames))
        for _ in range(self._random.choice((1, 1, 1, 2, 4, 16))):
            self._damage(frame)
        return bytes(frame)

    def _damage(self, frame: bytearray) -> None:
        chance = self._random
        at = chance.randrange(len(frame) + 1)
        match chance.randrange(6):
            case 0 | 1 if at < len(frame):
                frame[at] ^= 1 << chance.randrange(8)
            case 2:
                frame[at : at + 1] = bytes([chance.randrange(256)])
            case 3:
                frame[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 4:
                del frame[at : at + chance.randrange(1, 9)]
            case _:
                other = chance.choice(self._frames)
                start = chance.randrange(len(other))
                frame[at:] = other[start:]

    def _by_value(self) -> bytes:
        """A frame with one to three of its values replaced by others, at any depth."""
        chance = self._random
        fields = msgspec.msgpack.decode(chance.choice(self._plain))
        for _ in range(chance.choice((1, 1, 2, 3))):
            inside = fields
            while True:
                at = chance.randrange(len(inside))
                if not (isinstance(inside[at], list) and inside[at] and chance.random() < 0.9):
                    break
                inside = inside[at]
            inside[at] = copy.deepcopy(chance.choice(EXTREMES))
        return msgspec.msgpack.encode(fields)
