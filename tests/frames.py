"""Frames as a run's ranks would send them, from numbers a test chooses."""

from dpwatch.run.diagnose.advance import advance
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import Window
from dpwatch.wire.messages import (
    PROTOCOL_VERSION,
    Batch,
    ByCategory,
    Bye,
    Collective,
    DeviceInfo,
    Hello,
    Memory,
    Step,
    Transfer,
)

MS = 1_000_000
START_NS = 30_000_000_000
"""On the clock of a host that has just started: a hub refuses what is still to come."""


def batch(*records, rank=0, seq=0, now_ns=START_NS, run_id="run", pid=None, host="here", dropped=0):
    return Batch(
        version=PROTOCOL_VERSION,
        run_id=run_id,
        rank=rank,
        host=host,
        pid=1000 + rank if pid is None else pid,
        seq=seq,
        dropped=dropped,
        mono_ns=now_ns,
        wall_ns=now_ns,
        records=list(records),
    )


def hello(world_size=1, devices=("cpu",), kind="cpu", strategy="ddp", **more):
    return Hello(
        world_size=world_size,
        local_rank=0,
        strategy=strategy,
        backend="gloo",
        devices=[DeviceInfo(name, kind) for name in devices],
        capture="observer",
        **more,
    )


def step(index, *, took_ms=100, device=0, **more):
    """Step `index` of a run whose steps follow each other without a gap."""
    start = START_NS + index * took_ms * MS
    return Step(device=device, step=index, start_ns=start, end_ns=start + took_ms * MS, **more)


def collective(index, seq, *, nbytes, ranks, at_ms, took_ms=None, op="all_reduce", group="default"):
    issued = START_NS + int(at_ms * MS)
    done = None if took_ms is None else issued + int(took_ms * MS)
    return Collective(index, op, group, ranks, seq, nbytes, issued, done)


def memory(index, peak, *, device=0, **categories):
    by = ByCategory(**categories)
    return Memory(device, index, peak, peak, by, by, "ledger")


def dp_run(steps=10, devices=4, param_bytes=1000):
    """A `dp` run: one process, device 0 holding and carrying more."""
    names = [f"vgpu:{d}" for d in range(devices)]
    yield batch(hello(1, names, "virtual", "dp", cores=2))
    for index in range(steps):
        records = []
        for d in range(1, devices):
            records.append(Transfer(index, "replicate", 0, d, param_bytes, MS))
            records.append(Transfer(index, "reduce", d, 0, param_bytes, MS))
        for d in range(devices):
            peak = 5900 if d == 0 else 3200
            records.append(memory(index, peak, device=d, params=peak))
            records.append(
                step(
                    index,
                    device=d,
                    samples=4,
                    loss=5.0 - index / 10 if d == 0 else None,
                    gil_wait_ns=8 * MS,
                    runqueue_ns=30 * MS,
                )
            )
        yield batch(*records, seq=index + 1, now_ns=records[-1].end_ns)
    yield batch(Bye("finished"), seq=steps + 1, now_ns=START_NS + steps * 100 * MS)


def ddp_run(steps=10, ranks=4, nbytes=1200):
    """A `ddp` run: two all-reduces a step, rank 2 always last by 4 ms."""
    for r in range(ranks):
        yield batch(hello(ranks, strategy="ddp", cores=2), rank=r)
    for index in range(steps):
        for r in range(ranks):
            late = 4 if r == 2 else 0
            at = index * 100 + 50 + late
            yield batch(
                collective(index, 2 * index, nbytes=nbytes, ranks=ranks, at_ms=at, took_ms=2),
                collective(index, 2 * index + 1, nbytes=300, ranks=ranks, at_ms=at + 10, took_ms=3),
                memory(index, 3200, params=1000, grads=1000, optimizer=1200),
                step(
                    index,
                    samples=4,
                    loss=5.0 - index / 10 + r / 100,
                    exposed_ns=7 * MS,
                    comm_ns=5 * MS,
                ),
                rank=r,
                seq=index + 1,
                now_ns=START_NS + (index + 1) * 100 * MS,
            )
    for r in range(ranks):
        yield batch(Bye("finished"), rank=r, seq=99, now_ns=START_NS + steps * 100 * MS)


def played(frames):
    """The state of a run whose hub took in these frames."""
    state = RunState("run")
    for frame in frames:
        advance(state, frame)
    return state


def window(steps):
    """A lane's last steps."""
    found = Window()
    for each in steps:
        found.push(each)
    return found
