"""A run of each strategy on four devices, with figures as the algorithms give them."""

from __future__ import annotations

import math

from msgspec.structs import replace

from dpwatch.run.model import snapshot as s
from dpwatch.run.model.largest_batch import DevicePeak, LargestBatch

P = 12_900_000
"""Parameter bytes of the model in these scenes."""
A = 9_000_000
"""Activation bytes of one device's samples."""
LOGITS = 1_589_248
"""Logits of one device's samples."""
TOKENS = 32_768
N = 4
NAMES = (
    "single", "dp", "ps-gpu0", "ps-cpu", "ps-sharded", "ddp", "ddp-mp", "zero1", "zero2", "zero3",
    "fsdp1", "fsdp", "hsdp",
)  # fmt: skip


def every_run(*, upto: int = len(NAMES), running: bool = False) -> list[s.RunView]:
    """The first `upto` of them, newest first, as a hub has them."""
    last = upto - 1
    return [
        scheme_run(name, state="running" if running and index == last else "finished")
        for index, name in enumerate(NAMES[:upto])
    ][::-1]


def searched_runs() -> list[s.RunView]:
    """All of them, the largest batch of three known."""
    found = {
        "dp": _largest("dp", 12, 98, 27),
        "ddp": _largest("ddp", 44, 99, 99),
        "zero3": LargestBatch("zero3", 0, 0, "vgpu:0", [], 1),
    }
    return [replace(view, largest_batch=found.get(view.run.strategy)) for view in every_run()]


def _largest(name: str, batch: int, *percent: int) -> LargestBatch:
    """With devices so full; the first is the one that runs out."""
    devices = [DevicePeak(f"vgpu:{i}", each, 100) for i, each in enumerate(percent)]
    return LargestBatch(name, batch, batch * len(devices), "vgpu:0", devices, 7)


def scheme_run(name: str, *, state: str = "finished", steps: int = 60) -> s.RunView:
    """One strategy."""
    copies, ops = _copies(name), _collectives(name)
    wire = {"ddp": 1.5, "ddp-mp": 0.5, "zero1": 2.5, "zero2": 1.5, "hsdp": 1.5}.get(
        name, 2.25 if ops else 0.0
    )
    step = {"single": 61.0, "dp": 104.0, "ps-cpu": 92.0, "ddp": 78.0}.get(name, 88.0) + len(name)
    ranks = [
        _rank(name, index, device, copies, int(wire * P), step, state, steps)
        for index, device in enumerate(_devices(name))
    ]
    run = s.Run(
        run_id=f"run-{name}", title="character LM, 2 layers of 128", strategy=name,
        world_size=1 if name == "single" else N, hosts=["box"],
        backend="gloo" if ops else "virtual", devices="virtual",
        model=s.Model(params=P // 4, param_bytes=P), state=state, reason="", steps=steps,
        total_steps=60, cores=2, loss=s.Loss(first=4.61, last=2.122), samples_per_s=16e3 / step,
        ranks=ranks, collectives=ops, transfers=copies, balance=_balance(ranks),
        diagnoses=[] if name == "single" else [_short()],
    )  # fmt: skip
    at = tuple(range(1, steps))
    loss = tuple(1.9 + 2.7 * math.exp(-i / 20) for i in at)
    return s.RunView(run=run, history=s.History(loss=s.Curve(at, loss)), elapsed_s=6.1)


def _devices(name: str) -> list[str]:
    names = [f"vgpu:{index}" for index in range(1 if name == "single" else N)]
    return [*names, "host"] if name == "ps-cpu" else names


def _held(name: str, index: int, device: str) -> dict[str, int]:
    """Parameters, gradients, optimizer, activations, and what is gathered or kept in buckets."""
    whole = {"params": P, "grads": P, "optimizer": 2 * P, "activations": A}
    share = {key: value // N for key, value in whole.items()}
    if device == "host":
        return {**whole, "activations": 0}
    if name == "single":
        return {**whole, "activations": N * A}
    if name == "dp":
        more = {"activations": A + 2 * N * LOGITS, "temp": P}
        return {**whole, **more} if index == 0 else {**whole, "optimizer": 0}
    if name.startswith("ps-"):
        served = {"ps-gpu0": 2 * P if index == 0 else 0, "ps-sharded": P // 2}.get(name, 0)
        return {**whole, "optimizer": served, "temp": P if served == 2 * P else 0}
    if name == "ddp-mp":
        return {key: value // 2 for key, value in whole.items()} | {"activations": A}
    if name in ("ddp", "zero1", "zero2"):
        held = {**whole, "temp": P}
        held |= {"optimizer": P // 2} if name != "ddp" else {}
        return held | ({"grads": P // N, "temp": P // 3} if name == "zero2" else {})
    cut = 2 if name == "hsdp" else 1
    return {key: value * cut for key, value in share.items()} | {
        "activations": A,
        "gathered": P // 3,
    }


def _rank(
    name: str, index: int, device: str, copies: list[s.TransferStats], wire: int, step: float,
    state: str, steps: int,
) -> s.Rank:  # fmt: skip
    held = _held(name, index, device)
    memory = dict.fromkeys(("buffers", "temp", "gathered"), 0) | held
    peak = sum(memory.values())
    kept = s.Categories(params=held["params"], grads=held["grads"], optimizer=held["optimizer"],
                        activations=0, buffers=0, temp=0, gathered=0)  # fmt: skip
    one_process = bool(copies) and not wire
    host = device == "host"
    master = index == 0 and name in ("dp", "ps-gpu0")
    phases = s.PhaseTimes(
        data=1.2, forward=0.3 * step, backward=0.45 * step, optimizer=0.1 * step,
        other=0.15 * step - 1.2,
    )  # fmt: skip
    total = 0.3 * step if wire else 0.12 * step if copies else None
    exposed = None if total is None else total * (0.4 if wire else 1.0)
    share = None if exposed is None or host else exposed / step
    return s.Rank(
        rank=0 if one_process else index // 2 if name == "ddp-mp" else index, device=device,
        host="box", pid=4000 + index, state=state, steps=steps, dropped=0,
        step_ms=s.StepTime() if host else s.StepTime(p50=step, p95=1.2 * step, last=step),
        phases_ms=s.PhaseTimes() if host else phases,
        comm_ms=s.CommTimes(total=total, exposed=exposed, wait=1.0 if wire else None,
                            exposed_share=share),
        memory=s.MemoryUse(current_bytes=peak - held["activations"], peak_bytes=peak,
                           source="ledger", at_step_end=kept, **memory),
        sent_bytes_per_step=wire + sum(c.bytes_per_step for c in copies if c.src == device),
        received_bytes_per_step=wire + sum(c.bytes_per_step for c in copies if c.dst == device),
        gil_wait=None if host else 0.12 if one_process and not master else 0.01,
        idle=None if host else 0.2, runqueue_wait=None if host else 0.33,
    )  # fmt: skip


def _copies(name: str) -> list[s.TransferStats]:
    far = [f"vgpu:{index}" for index in range(1, N)]
    if name == "dp":
        out = {"scatter": TOKENS, "replicate": P, "scatter_grad": LOGITS}
        back = {"gather": LOGITS, "reduce": P}
        return [
            *(_copy(kind, "vgpu:0", to, size) for kind, size in out.items() for to in far),
            *(_copy(kind, to, "vgpu:0", size) for kind, size in back.items() for to in far),
        ]
    if name in ("ps-gpu0", "ps-cpu"):
        server = "host" if name == "ps-cpu" else "vgpu:0"
        workers = ["vgpu:0", *far] if name == "ps-cpu" else far
        return [
            *(_copy("push", worker, server, P) for worker in workers),
            *(_copy("pull", server, worker, P) for worker in workers),
        ]
    if name == "ps-sharded":
        pairs = [(a, b) for a in ("vgpu:0", *far) for b in ("vgpu:0", *far) if a != b]
        return [_copy(kind, a, b, P // N) for kind in ("push", "pull") for a, b in pairs]
    if name == "ddp-mp":
        hops = [("vgpu:0", "vgpu:1"), ("vgpu:2", "vgpu:3")]
        return [
            *(_copy("activation", a, b, 4 * LOGITS) for a, b in hops),
            *(_copy("activation_grad", b, a, 4 * LOGITS) for a, b in hops),
        ]
    return []


def _copy(kind: str, src: str, dst: str, size: int) -> s.TransferStats:
    return s.TransferStats(kind=kind, src=src, dst=dst, bytes_per_step=size, ms_per_step=size / 4e6)


def _collectives(name: str) -> list[s.CollectiveStats]:
    calls: dict[str, list[tuple[str, str, int, float, int]]] = {
        "ddp": [("all_reduce", "default", N, 2, P)],
        "ddp-mp": [("all_reduce", "default", 2, 2, P // 2)],
        "zero1": [("all_reduce", "default", N, 2, P), ("broadcast", "default", N, 26, P)],
        "zero2": [("reduce", "default", N, 26, P), ("broadcast", "default", N, 26, P)],
        "hsdp": [
            ("all_gather", "shard", 2, 6, P), ("reduce_scatter", "shard", 2, 3, P),
            ("all_reduce", "replicate", 2, 3, P // 2),
        ],
    }  # fmt: skip
    for sharded in ("zero3", "fsdp", "fsdp1"):
        calls[sharded] = [
            ("all_gather", "default", N, 6, P // 2), ("reduce_scatter", "default", N, 3, P),
        ]  # fmt: skip
    return [
        s.CollectiveStats(
            op=op, group=group, ranks=ranks, count_per_step=float(count), bytes_per_step=size,
            latency_ms=s.Quantiles(p50=9.4, p95=14.2), algbw_gbps=5.4, busbw_gbps=8.2,
        )
        for op, group, ranks, count, size in calls.get(name, [])
    ]  # fmt: skip


def _balance(ranks: list[s.Rank]) -> s.Balance:
    rows = [rank for rank in ranks if rank.device != "host"]
    if len(rows) < 2:
        return s.Balance()
    peaks = [rank.memory.peak_bytes or 0 for rank in rows]
    moved = [(r.sent_bytes_per_step or 0) + (r.received_bytes_per_step or 0) for r in rows]
    return s.Balance(
        peak_max_over_min=max(peaks) / min(peaks),
        peak_device0_over_median=peaks[0] / peaks[1],
        traffic_device0_over_median=moved[0] / moved[1],
    )


def _short() -> s.Diagnosis:
    return s.Diagnosis(
        kind="cpu_oversubscribed", severity="warning", ranks=[0, 1, 2, 3], since_step=3,
        text="4 training threads spend 33% of the time ready to run but without a core.",
        evidence={"runqueue_wait_mean": 0.33, "threads": 4, "cores": 2},
    )  # fmt: skip
