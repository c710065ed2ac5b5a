"""Ranks that train nothing: one process sends what a thousand probes would, frame by frame.

    python -m tests.bench.simulated RUN_DIR --ranks N --load ddp --seconds 8 …

Each rank sends over a socket of its own as the probe's publisher does: a frame every 250 ms (in a
run of more than 64 ranks 500 ms, of more than 512 a second), in it the steps that ended since the
last one with their collectives, and now and then hello, beat and memory. What ranks have in
common is encoded once, so that this process takes little of the machine it shares with what is
measured.

It prints a line when the warm-up is over and one after each part of the time asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import zmq

from dpwatch.runtime.paths import RunDir, host_name
from dpwatch.wire import codec, transport
from dpwatch.wire.batching import count_records, pack
from dpwatch.wire.messages import (
    PROTOCOL_VERSION,
    AnyRecord,
    Beat,
    ByCategory,
    Collective,
    DeviceInfo,
    Hello,
    Memory,
    Position,
    Step,
)

FRAME_NS = 250_000_000
MANY_RANKS, MANY_FRAME_NS = 64, 500_000_000
CROWD_RANKS, CROWD_FRAME_NS = 512, 1_000_000_000
HELLO_NS, BEAT_NS = 2_000_000_000, 500_000_000
"""As the probe's `publisher` has them, which cannot be imported without torch."""

MEMORY_EVERY = 100
"""Steps."""

VARIANTS = 31
"""So many times may a rank come to a step's collectives; which one is whose changes each step."""

APART_NS = 20_000
MAX_SOCKETS = 4096
TURN_S = 0.005


class Load(NamedTuple):
    """What a step calls: `(op, bytes)` of each collective."""

    strategy: str
    calls: tuple[tuple[str, int], ...]


LOADS = {
    "steps": Load("ddp", ()),
    "ddp": Load("ddp", (("all_reduce", 26_214_400),) * 4),
    "fsdp": Load("fsdp", (("all_gather", 3_276_800),) * 16 + (("reduce_scatter", 26_214_400),) * 8),
}


class Encoded(NamedTuple):
    """A record as it is sent, and how many it counts as."""

    record: bytes
    count: int


class Ranks:
    """The simulated ranks of a run, whose time goes on by `send_until`."""

    def __init__(
        self,
        place: RunDir,
        load: Load,
        ranks: int,
        step_ns: int,
        *,
        first: int = 0,
        world: int | None = None,
        host: str = "",
    ) -> None:
        self.load, self.ranks, self.step_ns = load, ranks, step_ns
        self.sent_frames = self.sent_records = self.waited = 0
        self.first, self.world = first, world or ranks
        self.frame_ns = FRAME_NS
        if self.world > MANY_RANKS:
            self.frame_ns = MANY_FRAME_NS if self.world <= CROWD_RANKS else CROWD_FRAME_NS
        now_ns = time.monotonic_ns()
        self.origin_ns = now_ns if world is None else now_ns - now_ns % 1_000_000_000
        self._wall_ns = time.time_ns() - self.origin_ns
        self._run_id = place.run_id
        self._host, self._pid = host or host_name(), os.getpid()
        self._encoder = msgspec.msgpack.Encoder()
        self._encoded: dict[tuple[int, int | tuple[int, int]], list[Encoded]] = {}
        self._counts = [0] * ranks
        self._seqs = [0] * ranks
        self._next = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, MAX_SOCKETS + 8)
        self._sockets = [
            transport.push_socket(self._context, place.ingest)
            for _ in range(min(ranks, MAX_SOCKETS))
        ]

    def close(self) -> None:
        for socket in self._sockets:
            socket.close(linger=2000)
        self._context.term()

    @property
    def steps(self) -> int:
        """Steps told of, the sum over all ranks."""
        turns, more = divmod(self._next, self.ranks)
        return sum(self._due(turns - (r >= more), r)[1] for r in range(self.ranks))

    def send_until(self, ns: int) -> int:
        """Sends what is due before a moment of the run. Returns: when the next frame is due."""
        while (due_ns := self._due_ns(self._next)) < ns:
            self._turn(*divmod(self._next, self.ranks), due_ns)
            self._next += 1
        return due_ns

    def _due_ns(self, count: int) -> int:
        turn, rank = divmod(count, self.ranks)
        return turn * self.frame_ns + rank * self.frame_ns // self.ranks

    def _due(self, turn: int, rank: int) -> tuple[int, int]:
        """The steps that a rank's frame of that turn tells of."""
        now_ns = self._due_ns(turn * self.ranks + rank)
        return max(0, now_ns - self.frame_ns) // self.step_ns, now_ns // self.step_ns

    def _turn(self, turn: int, rank: int, due_ns: int) -> None:
        first, end = self._due(turn, rank)
        records: list[Encoded] = []
        if turn * self.frame_ns % HELLO_NS == 0:
            records.append(Encoded(self._encoder.encode(self._hello(rank)), 1))
        if turn * self.frame_ns % BEAT_NS == 0:
            records += self._encoded_once(-1, end, lambda: self._beat(end))
        if end > first:
            variant = _variant(rank, first)  # which has those of the steps after it follow
            records += self._encoded_once(
                variant, (first, end), lambda: self._steps(rank, range(first, end))
            )
        for step in range(first, end):
            if step % MEMORY_EVERY == 2:
                records += self._encoded_once(-2, step, lambda s=step: self._memory(s))
        if rank == self.ranks - 1:
            self._forget(first)
        for at in range(0, len(records), codec.MAX_RECORDS):
            self._send(rank, due_ns, records[at : at + codec.MAX_RECORDS])

    def _encoded_once(
        self, variant: int, key: int | tuple[int, int], make: Callable[[], Any]
    ) -> list[Encoded]:
        found = self._encoded.get((variant, key))
        if found is None:
            made = make()
            found = self._encoded[variant, key] = [
                Encoded(self._encoder.encode(each), count_records([each]))
                for each in (made if isinstance(made, list) else [made])
            ]
        return found

    def _forget(self, step: int) -> None:
        self._encoded = {
            (v, key): found
            for (v, key), found in self._encoded.items()
            if (key if isinstance(key, int) else key[0]) >= step - 2
        }

    def _send(self, rank: int, due_ns: int, records: list[Encoded]) -> None:
        mono_ns = self.origin_ns + due_ns
        head = (
            PROTOCOL_VERSION, self._run_id, self.first + rank, self._host, self._pid,
            self._seqs[rank], 0, mono_ns, mono_ns + self._wall_ns,
        )  # fmt: skip
        count = len(records).to_bytes(2, "big")
        sent = self._encoder.encode(self._counts[rank])
        body = b"".join([each.record for each in records])
        frame = b"\x9b" + self._encoder.encode(head)[1:] + b"\xdc" + count + body + sent
        socket = self._sockets[rank % len(self._sockets)]
        while True:
            try:
                socket.send(frame, zmq.NOBLOCK)
                break
            except zmq.Again:
                self.waited += 1
                time.sleep(TURN_S)
        self._seqs[rank] += 1
        told = sum(each.count for each in records)
        self._counts[rank] += told
        self.sent_frames += 1
        self.sent_records += told

    def _hello(self, rank: int) -> Hello:
        device = DeviceInfo(f"cuda:{rank % 8}", "cuda", 80 << 30, "NVIDIA H100 80GB HBM3")
        return Hello(
            world_size=self.world,
            local_rank=rank % 8,
            strategy=self.load.strategy,
            backend="nccl",
            devices=[device],
            params=124_439_808,
            param_bytes=497_759_232,
            title="train_gpt.py",
            total_steps=100_000,
            cores=208,
            torch_version="2.13.0",
            capture="observer",
        )

    def _beat(self, step: int) -> Beat:
        entered = self.origin_ns + step * self.step_ns
        calls = max(1, len(self.load.calls))
        op, nbytes = self.load.calls[-1] if self.load.calls else ("all_reduce", 4)
        position = Position(
            "default", self.world, max(0, step * calls - 1), op, nbytes, "float32", entered,
            max(0, step - 1), True, "train_gpt.py:311",
        )  # fmt: skip
        return Beat(step, "forward", 3 << 30, None, "train_gpt.py:305 step", 0, [position])

    def _memory(self, step: int) -> Memory:
        held = ByCategory(497_759_232, 0, 995_518_464, 0, 52_428_800, 0, 0)
        peak = ByCategory(497_759_232, 497_759_232, 995_518_464, 9 << 30, 52_428_800, 1 << 20, 0)
        sums = (sum(b or 0 for b in msgspec.structs.astuple(by)) for by in (held, peak))
        return Memory(0, step, *sums, held, peak, "cuda")

    def _steps(self, rank: int, steps: range) -> list[AnyRecord]:
        each = range(len(self.load.calls))
        return pack(
            [
                record
                for step in steps
                for variant in (_variant(rank, step),)
                for record in (
                    *(self._call(step, place, variant) for place in each),
                    self._step(step, variant),
                )
            ]
        )

    def _call(self, step: int, place: int, variant: int) -> Collective:
        """As a probe tells of it: DDP's are C++'s, which nobody waits for in Python."""
        ms, jitter = self.step_ns // 100, variant * APART_NS
        calls = self.load.calls
        op, nbytes = calls[place]
        native = self.load.strategy == "ddp"
        issued = self.origin_ns + step * self.step_ns + 40 * ms + jitter
        issued += place * 50 * ms // len(calls)
        return Collective(
            step, op, "default", self.world, step * len(calls) + place, nbytes, issued,
            issued + ms, None if native else 80_000 + jitter, "float32", 0, "backward",
            100_000 + jitter, "train_gpt.py:308", native, nbytes,
        )  # fmt: skip

    def _step(self, step: int, variant: int) -> Step:
        start = self.origin_ns + step * self.step_ns
        ms, jitter = self.step_ns // 100, variant * APART_NS
        return Step(
            0, step, start, start + self.step_ns, ms + jitter, ms, 30 * ms + jitter, 60 * ms,
            5 * ms, 70 * ms, 2 * ms + jitter, 0, 28 * ms - jitter, 4 * ms,
            3.0 + 1 / (step + 1) + variant / 1000, 16,
        )  # fmt: skip


def _variant(rank: int, step: int) -> int:
    return (17 * rank + 7 * step) % VARIANTS


def main() -> None:
    """Sends in real time, and says how far it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("place", type=Path)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--load", choices=LOADS, default="ddp")
    parser.add_argument("--rate", type=float, default=10.0, help="steps a second")
    parser.add_argument("--first", type=int, default=0, help="number of the first rank")
    parser.add_argument("--world", type=int, help="ranks of the run, those of other hosts too")
    parser.add_argument("--host", default="", help="name of the host that they say they are on")
    parser.add_argument("--parts", type=float, nargs="+", default=[5.0], help="seconds of each")
    options = parser.parse_args()
    more_files()
    ranks = Ranks(
        RunDir(options.place),
        LOADS[options.load],
        options.ranks,
        int(1e9 / options.rate),
        first=options.first,
        world=options.world,
        host=options.host,
    )
    until_ns = 0
    for seconds in options.parts:
        until_ns += int(seconds * 1e9)
        now_ns = 0
        while now_ns < until_ns:
            now_ns = time.monotonic_ns() - ranks.origin_ns
            due_ns = ranks.send_until(min(now_ns, until_ns))
            time.sleep(max(TURN_S, min(due_ns - now_ns, until_ns - now_ns) / 1e9))
        tell(ranks, until_ns)
    sys.stdin.read()  # the sockets stay open until all has been looked at
    ranks.close()


def tell(ranks: Ranks, until_ns: int) -> None:
    """One line of JSON: how far it is, and what that took."""
    told = {
        "simulated_s": until_ns / 1e9,
        "wall_s": (time.monotonic_ns() - ranks.origin_ns) / 1e9,
        "steps": ranks.steps,
        "frames": ranks.sent_frames,
        "records": ranks.sent_records,
        "waited": ranks.waited,
        "cpu_s": time.process_time(),
    }
    print(json.dumps(told), flush=True)


def more_files() -> None:
    """A socket takes two descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
