"""Snapshots as a hub would make them, for the dashboard's tests."""

from __future__ import annotations

import math
import queue

from msgspec.structs import replace

from dpwatch.run.model import snapshot as s
from dpwatch.run.model.stacks import RankStacks
from dpwatch.wire.messages import Step, ThreadStack

P = 12_900_000
"""Parameter bytes of the model in these scenes."""


def dp_run(
    *, state: str = "running", steps: int = 128, reason: str = "", title: str = "demo"
) -> s.RunView:
    """nn.DataParallel on four virtual devices: device 0 holds and sends more than the others."""
    ranks = [_dp_rank(device, state, steps) for device in range(4)]
    run = s.Run(
        run_id="run-dp", title=title, strategy="dp", world_size=4, hosts=["box"],
        backend="virtual", devices="virtual", model=s.Model(params=3_225_000, param_bytes=P),
        state=state, reason=reason, steps=steps, total_steps=200, cores=2,
        loss=s.Loss(first=4.61, last=2.213), samples_per_s=161.0, ranks=ranks, collectives=[],
        transfers=_dp_transfers(),
        balance=s.Balance(
            peak_max_over_min=1.82, peak_device0_over_median=1.82, traffic_device0_over_median=3.0
        ),
        diagnoses=[dp_imbalance(), gil_bound()],
    )  # fmt: skip
    return s.RunView(
        run=run, history=_history(steps, 4, 99.0, [58_900_000] + [32_400_000] * 3), elapsed_s=31.4
    )


def _dp_rank(device: int, state: str, steps: int) -> s.Rank:
    master = device == 0
    phases = (
        s.PhaseTimes(data=1.4, h2d=None, forward=36.2, backward=49.8, optimizer=9.1, other=2.5)
        if master
        else s.PhaseTimes(
            data=None, h2d=None, forward=28.4, backward=39.0, optimizer=0.0, other=31.6
        )
    )
    peak = 58_900_000 if master else 32_400_000
    known = {"params": P, "grads": P, "optimizer": 2 * P if master else 0, "buffers": 65_536}
    rest = peak - sum(known.values())
    replicas = 3 * P
    return s.Rank(
        rank=0, device=f"vgpu:{device}", host="box", pid=4242, state=state, steps=steps, dropped=0,
        step_ms=s.StepTime(p50=99.0, p95=121.0, last=97.3), phases_ms=phases,
        memory=s.MemoryUse(
            current_bytes=peak - rest, peak_bytes=peak, source="ledger", temp=int(rest * 0.2),
            activations=rest - int(rest * 0.2), gathered=0, **known,
            at_step_end=s.Categories(optimizer=known.get("optimizer", 0)),
        ),
        sent_bytes_per_step=replicas + 400_000 if master else P + 131_072,
        received_bytes_per_step=replicas + 393_216 if master else P + 133_000,
        gil_wait=0.02 if master else 0.13, idle=0.31 if master else 0.36,
        runqueue_wait=0.21 if master else 0.24,
    )  # fmt: skip


def _dp_transfers() -> list[s.TransferStats]:
    sizes = {"scatter": 131_072, "replicate": P, "gather": 133_000, "reduce": P}
    out = ("scatter", "replicate")
    return [
        s.TransferStats(
            kind=kind,
            src="vgpu:0" if kind in out else f"vgpu:{other}",
            dst=f"vgpu:{other}" if kind in out else "vgpu:0",
            bytes_per_step=size,
            ms_per_step=size / 4e6,
        )
        for kind, size in sizes.items()
        for other in (1, 2, 3)
    ]


def dp_imbalance() -> s.Diagnosis:
    return s.Diagnosis(
        kind="master_imbalance", severity="warning", ranks=[0], since_step=5,
        text="device 0 holds the optimizer and every gradient and sends the whole model to the "
        "others each step: 1.82× their memory, 3.00× their traffic. Use ddp or fsdp.",
        evidence={
            "peak_device0_bytes": 58_900_000, "peak_median_bytes": 32_400_000,
            "peak_device0_over_median": 1.82, "traffic_device0_over_median": 3.0,
        },
    )  # fmt: skip


def gil_bound() -> s.Diagnosis:
    return s.Diagnosis(
        kind="gil_bound", severity="info", ranks=[0], since_step=9,
        text="The replicas' threads wait for Python's global lock for 13 % of the step.",
        evidence={"gil_wait": 0.13, "threads": 4},
    )  # fmt: skip


def ddp_run(*, state: str = "running", steps: int = 150, ranks: int = 4) -> s.RunView:
    """DistributedDataParallel: every rank holds and sends as much as the others."""
    run = s.Run(
        run_id="run-ddp", title="demo", strategy="ddp", world_size=ranks, hosts=["box"],
        backend="gloo", devices="virtual", model=s.Model(params=3_225_000, param_bytes=P),
        state=state, reason="", steps=steps, total_steps=200, cores=2,
        loss=s.Loss(first=4.61, last=2.122), samples_per_s=212.4,
        ranks=[_ddp_rank(rank, state, steps) for rank in range(ranks)],
        collectives=[
            s.CollectiveStats(
                op="all_reduce", group="default", ranks=ranks, count_per_step=2.0, bytes_per_step=P,
                latency_ms=s.Quantiles(p50=9.4, p95=14.2), algbw_gbps=5.4, busbw_gbps=8.2,
                exposed_ms_per_step=6.2,
                last_arrival=s.LastArrival(rank=2, share=0.41, wait_ms=3.1),
            )
        ],
        transfers=[],
        balance=s.Balance(
            peak_max_over_min=1.01, peak_device0_over_median=1.0, traffic_device0_over_median=1.0
        ),
        diagnoses=[],
    )  # fmt: skip
    return s.RunView(
        run=run, history=_history(steps, ranks, 76.0, [4 * P + P // 2] * ranks), elapsed_s=14.0
    )


def _ddp_rank(rank: int, state: str, steps: int) -> s.Rank:
    step = 75.0 + rank % 7
    return s.Rank(
        rank=rank, device=f"vgpu:{rank}", host="box", pid=5000 + rank, state=state, steps=steps,
        dropped=0, step_ms=s.StepTime(p50=step, p95=step * 1.3, last=step),
        phases_ms=s.PhaseTimes(
            data=1.1, h2d=0.1, forward=22.0, backward=38.0 + rank % 7, optimizer=9.0, other=4.8
        ),
        comm_ms=s.CommTimes(total=18.0, exposed=6.2, wait=3.0, exposed_share=6.2 / step),
        memory=s.MemoryUse(
            current_bytes=4 * P, peak_bytes=4 * P + P // 2, source="ledger", params=P, grads=P,
            optimizer=2 * P, activations=P // 4, buffers=P // 4, temp=0, gathered=0,
            at_step_end=s.Categories(optimizer=2 * P),
        ),
        sent_bytes_per_step=P * 3 // 2, received_bytes_per_step=P * 3 // 2, gil_wait=0.0,
        idle=0.22, runqueue_wait=0.34,
    )  # fmt: skip


def starting_run() -> s.RunView:
    """Ranks have said hello; no step yet, so nothing is known of them."""
    ranks = [
        s.Rank(rank=0, device=f"vgpu:{i}", host="box", pid=77, state="starting", steps=0, dropped=0)
        for i in range(4)
    ]
    run = s.Run(
        run_id="run-new", title="demo", strategy="dp", world_size=4, hosts=["box"],
        backend="virtual", devices="virtual", model=s.Model(), state="starting", reason="", steps=0,
        total_steps=200, cores=2, loss=s.Loss(), samples_per_s=None, ranks=ranks, collectives=[],
        transfers=[], balance=s.Balance(), diagnoses=[],
    )  # fmt: skip
    return s.RunView(run=run)


def hostile_run() -> s.RunView:
    """Every text a rank can choose tries to be markup, an escape, or too long."""
    view = dp_run(
        title="[red]boo[/red] \x1b]0;owned\x07\x1b[2J\nsecond \u202eline [@click=app.quit]x"
    )
    bad = "[bold]\x1b[31mred\x1b[0m[/]" * 40
    rank = view.run.ranks[0]
    ranks = [
        s.Rank(rank=0, device=bad, host=bad, pid=1, state=bad, steps=1, dropped=3),
        s.Rank(rank=1, device="漢字デバイス名前が長い", host="é" * 300, pid=1, state="running",
               steps=1, dropped=0, memory=rank.memory),
    ]  # fmt: skip
    run = s.Run(
        run_id="bad", title=view.run.title, strategy=bad, world_size=2, hosts=[bad, "b"],
        backend=bad, devices=bad, model=view.run.model, state="failed", reason=bad, steps=1,
        total_steps=0, cores=None, loss=s.Loss(first=math.nan, last=math.inf),
        samples_per_s=math.nan,
        ranks=ranks,
        collectives=[s.CollectiveStats(op=bad, group=bad, ranks=2, count_per_step=1.0,
                                       bytes_per_step=1)],
        issuers=[s.IssuerStats(framework=bad, function=bad, purpose=bad, op=bad, group=bad, ranks=2,
                               dtype=bad, calls=1, bytes=1, count_per_step=1.0, bytes_per_step=1,
                               first_step=0, last_step=0)],
        transfers=[s.TransferStats(kind=bad, src=bad, dst=bad, bytes_per_step=1, ms_per_step=0.1)],
        balance=s.Balance(),
        diagnoses=[s.Diagnosis(kind=bad, severity=bad, ranks=list(range(50)), since_step=0,
                               text=bad, evidence={bad: bad, "list": [1, None, bad]})],
    )  # fmt: skip
    return s.RunView(run=run)


def _history(steps: int, ranks: int, step_ms: float, peaks: list[int]) -> s.History:
    at = tuple(range(1, steps, max(steps // 100, 1)))
    wobble = tuple(step_ms * (1 + 0.08 * math.sin(i * 1.7) + (0.3 if i < 3 else 0)) for i in at)
    loss = tuple(1.9 + 2.7 * math.exp(-i / 60) + 0.06 * math.sin(i * 2.3) for i in at)
    return s.History(
        loss=s.Curve(at, loss),
        step_ms=s.Curve(at, wobble),
        rank_step_ms=tuple(s.Curve(at, wobble) for _ in range(ranks)),
        rank_peak_bytes=tuple(s.Curve(at, tuple(float(p) for _ in at)) for p in peaks),
    )


def snapshot(*views: s.RunView, wall_s: float = 1000.0, notice: str = "") -> s.Snapshot:
    return s.Snapshot(runs=views, wall_s=wall_s, notice=notice)


_GIB = 1 << 30
GPUS = tuple(
    s.HostGpu(
        index=index,
        name="NVIDIA A100-SXM4-40GB",
        util=util,
        temperature_c=temperature_c,
        power_w=power_w,
        used_bytes=used,
        capacity_bytes=40 * _GIB,
        processes=(s.GpuProcess(4711, "python [b]", used),) if index < 3 else (),
    )
    for index, (util, temperature_c, power_w, used) in enumerate(
        (
            (0.97, 61.0, 312.0, 10 * _GIB),
            (0.45, 52.0, 181.0, 2 * _GIB),
            (0.43, 51.0, 178.0, 2 * _GIB),
            (None, None, None, 2 * _GIB),
        )
    )
)
"""What nn.DataParallel does to four devices, as NVML sees it."""


class QueueSource:
    """A source a test puts snapshots into."""

    interval_s = 0.25

    def __init__(self, *snapshots: s.Snapshot) -> None:
        self.queue: queue.Queue[s.Snapshot | Exception] = queue.Queue()
        self.closed = 0
        self.asked: list[tuple[str, tuple[int, ...]]] = []
        for each in snapshots:
            self.queue.put(each)

    def next(self, timeout_s: float) -> s.Snapshot | None:
        try:
            item = self.queue.get(timeout=min(timeout_s, 0.05))
        except queue.Empty:
            return None
        if isinstance(item, Exception):
            raise item
        return item

    def ask_stacks(self, run_id: str, ranks: tuple[int, ...] = ()) -> None:
        self.asked.append((run_id, ranks))

    def close(self) -> None:
        self.closed += 1


def cluster_run(*, ranks: int = 1024, a_host: int = 8, state: str = "running") -> s.RunView:
    """Many ranks on many hosts: one is slow, one has failed, one is lost, one has said nothing."""
    view = ddp_run(ranks=ranks)
    rows = [
        replace(
            rank,
            host=f"node-{number // a_host:03}.cluster",
            device=f"cuda:{number % a_host}",
            step_ms=s.StepTime(p50=(step := 75.0 + (number * 7) % 11), p95=99.0, last=75.0),
            comm_ms=s.CommTimes(
                total=18.0, exposed=6.2, wait=(number * 13) % 17 / 4, exposed_share=6.2 / step
            ),
        )
        for number, rank in enumerate(view.run.ranks)
    ]
    slow = s.StepTime(p50=120.0, p95=140.0, last=121.0)
    rows[ranks // 3] = replace(rows[ranks // 3], step_ms=slow)
    rows[ranks // 2] = replace(rows[ranks // 2], state="failed")
    rows[ranks // 2 + 3] = replace(rows[ranks // 2 + 3], state="lost")
    rows[5] = s.Rank(rank=5, device=rows[5].device, host=rows[5].host, pid=9, state="starting",
                     steps=0, dropped=0)  # fmt: skip
    hosts = sorted({rank.host for rank in rows})
    # Of one rank nothing is known, so there is no median of the others.
    run = replace(view.run, ranks=rows, hosts=hosts, devices="cuda", balance=s.Balance())
    return replace(view, run=run)


def with_lanes(view: s.RunView, *, steps: int = 12, late: int | None = 2) -> s.RunView:
    """The view with its last steps; a rank's backward takes longer, and the others wait for it."""
    lanes = tuple(
        s.LaneSteps(
            rank=rank.rank,
            device=rank.device,
            host=rank.host,
            steps=tuple(_step(rank, number, index, late) for number in range(steps)),
        )
        for index, rank in enumerate(view.run.ranks[:64])
    )
    return replace(view, lanes=lanes)


def _step(rank: s.Rank, number: int, index: int, late: int | None) -> Step:
    start, ms = 10**12 + number * 100_000_000, 1_000_000
    slow = index == late
    return Step(
        device=0, step=rank.steps - 12 + number, start_ns=start + index * 10**5,
        end_ns=start + 100 * ms + (index % 3) * 10**5, data_ns=2 * ms, h2d_ns=1 * ms,
        forward_ns=26 * ms, backward_ns=52 * ms, optimizer_ns=12 * ms,
        exposed_ns=(4 if slow else 22) * ms + number * 10**5,
    )  # fmt: skip


def past(
    kind: str = "straggler", severity: str = "warning", ranks: tuple[int, ...] = (2,),
    text: str = "rank 2 arrived last at 71 % of the collectives, 12.4 ms after the others: its "
    "backward takes longer. Look at what else runs on its host.",
    began_s: float = 1000.0, ended_s: float | None = 1090.0,
) -> s.Alert:  # fmt: skip
    """An entry of a run's history."""
    return s.Alert(kind=kind, severity=severity, ranks=list(ranks), since_step=40, text=text,
                   began_s=began_s, ended_s=ended_s)  # fmt: skip


def with_alerts(*alerts: s.Alert, **more: object) -> s.RunView:
    """A run with a history of what was found."""
    view = dp_run()
    return replace(view, run=replace(view.run, alerts=list(alerts), **more))


def alerted() -> s.RunView:
    """One finding holds since a minute, two are over."""
    holds = past(kind="gil_bound", severity="info", ranks=(0,), began_s=940.0, ended_s=None)
    hang = past(kind="hang", severity="critical", began_s=600.0, ended_s=700.0)
    return with_alerts(hang, past(began_s=800.0, ended_s=890.0), holds)


_WAITS = ("train.py:88 <module>", "train.py:61 main",
          "torch/nn/parallel/distributed.py:1661 forward",
          "torch/distributed/c10d_logger.py:83 wrapper",
          "torch/distributed/distributed_c10d.py:2963 all_reduce")  # fmt: skip
_LOOPS = ("train.py:88 <module>", "train.py:58 main", "data/tokens.py:31 pad_to_longest")


def _stacks(rank: int, frames: tuple[str, ...], theirs: int) -> RankStacks:
    loader = ThreadStack(
        "Thread-1 (_pin)", False, 5100 + rank, ["python3.11/threading.py:327 wait"]
    )
    return RankStacks(
        rank=rank, host="box", pid=5000 + rank, asked=1, answered=1, standing="answered", why="",
        waited_s=None, age_s=2.2, left_out=0, seen_at="train.py:61 main", seen_s=0.3,
        threads=(ThreadStack("MainThread", True, 5000 + rank, list(frames), theirs), loader),
    )  # fmt: skip


def stuck_run() -> s.RunView:
    """Six ranks wait in an all-reduce, one pads a batch for ever, one is stopped."""
    view = ddp_run(ranks=8, state="running")
    stopped = RankStacks(
        rank=7, host="box", pid=5007, asked=1, answered=0, standing="silent", waited_s=4.0,
        age_s=None, seen_at="train.py:61 main", seen_s=4.2,
        why="no answer for 4 s: its process is stopped (SIGSTOP or SIGTSTP); SIGCONT lets it go on",
    )  # fmt: skip
    told = [_stacks(rank, _WAITS, 1) for rank in range(8)]
    told[5] = _stacks(5, _LOOPS, 2)
    told[7] = stopped
    return replace(view, stacks=tuple(told), run=replace(view.run, state="hung"))


_BAR = "epoch 3:  61%|██████    | 97/160 [00:12<00:08,  7.61it/s]"
_TRACE = (
    "Traceback (most recent call last):",
    '  File "/home/ada/train.py", line 88, in <module>',
    "    main()",
    '  File "/home/ada/train.py", line 61, in main',
    "    loss = criterion(model(inputs), targets)",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB. GPU 2 has a total "
    "capacity of 39.39 GiB of which 214.56 MiB is free.",
)


def with_output(
    view: s.RunView, *, lines: int = 12, left_out: int = 0, let_go: int = 0, fails: int | None = 2
) -> s.RunView:
    """The view with what its ranks have printed: a log line a second, warnings, a traceback."""
    ranks = sorted({rank.rank for rank in view.run.ranks})
    output = []
    for rank in ranks:
        printed = [
            _printed(
                n + rank / 100, "out", f"step {100 + n}/200  loss {2.9 - n / 50 + rank / 500:.3f}"
            )
            for n in range(lines)
        ]
        printed.insert(3, _printed(2.5, "err", f"[rank{rank}] UserWarning: lr_scheduler.step()"))
        if rank == fails:
            printed += [_printed(lines + 0.2, "err", text) for text in _TRACE]
        if rank == 0:
            printed.append(_printed(lines + 0.5, "err", _BAR))
        output.append(s.RankOutput(rank, tuple(printed), left_out, let_go))
    return replace(view, output=tuple(output), tells_output=len(ranks))


def _printed(after_s: float, stream: str, text: str) -> s.Printed:
    return s.Printed(int((36_000 + after_s) * 1e9), stream, text)


def hostile_output() -> s.RunView:
    """Lines that try to be markup, escapes, too long or too wide."""
    texts = (
        "[bold]red[/bold] [@click=app.quit]x[/]", "\x1b[2J\x1b]0;owned\x07gone", "\u202eback\u2066",
        "漢字" * 120, "e\u0301" * 90, "\ud800 alone", "tab\tand\rreturn\nline", "", "x" * 400,
    )  # fmt: skip
    printed = tuple(_printed(n, "err", text) for n, text in enumerate(texts))
    odd = (s.Printed(-(10**18), "?", "long ago"), s.Printed(9 * 10**18, "out", "long ahead"))
    return replace(hostile_run(), output=(s.RankOutput(0, printed), s.RankOutput(10**9, odd)),
                   tells_output=2)  # fmt: skip
