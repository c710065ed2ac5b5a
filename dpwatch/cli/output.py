"""Runs as text: the JSON object, and a plain table for people and logs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

import dpwatch
from dpwatch.run.derive.comparison import peaks_of_processes
from dpwatch.run.derive.issuers import recent
from dpwatch.run.model.snapshot import SCHEMA, Alert, HostGpu, HostView, Rank, Run, Summary
from dpwatch.text_safety import escaped, printable
from dpwatch.units import UNKNOWN, mebibytes

_COLUMNS = (
    ("rank", 4),
    ("device", 8),
    ("state", 8),
    ("steps", 6),
    ("step ms", 9),
    ("peak MiB", 9),
    ("sent MiB", 9),
    ("recv MiB", 9),
    ("GIL", 5),
    ("idle", 5),
    ("queue", 5),
)


def json_text(runs: Sequence[Run], gpus: Sequence[HostGpu] = ()) -> str:
    """The `dpwatch.summary/1` object, indented."""
    return formatted(Summary(SCHEMA, dpwatch.__version__, list(runs), list(gpus)))


def formatted(told: msgspec.Struct) -> str:
    """A struct as indented JSON."""
    return escaped(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())


def columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a plain table: the first column left-aligned, the others right-aligned."""
    cells = [titles, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in cells
    ]


def table(runs: Sequence[Run]) -> str:
    """A block per run: its facts, a row per device, its diagnoses."""
    return "\n\n".join(_block(run) for run in runs)


def gpu_table(gpus: Sequence[HostGpu]) -> str:
    """A row per GPU, and the processes that use it."""
    if not gpus:
        return ""
    titles = ("GPU", "load", "used MiB", "of MiB", "°C", "W")
    rows = [
        [
            f"{gpu.host} {gpu.index} {gpu.name}".strip(),
            percent(gpu.util),
            mebibytes(gpu.used_bytes),
            mebibytes(gpu.capacity_bytes),
            number(gpu.temperature_c, 0),
            number(gpu.power_w, 0),
        ]
        for gpu in gpus
    ]
    head, *lines = columns(titles, rows)
    told = [head]
    for gpu, line in zip(gpus, lines, strict=True):
        told.append(line)
        told += [
            f"  {each.name or 'process'} {each.pid}: {mebibytes(each.used_bytes)} MiB"
            for each in gpu.processes
        ]
    return "\n".join(printable(line) for line in told)


def report(runs: Sequence[Run]) -> str:
    """The report after a command: the table, and the collectives of its ranks."""
    return "\n\n".join("\n".join([_block(run), *_collectives(run), *_issuers(run)]) for run in runs)


def _collectives(run: Run) -> list[str]:
    if not run.collectives:
        return []
    titles = (
        "collective",
        "group",
        "ranks",
        "calls/step",
        "bytes/step",
        "p50 ms",
        "last to arrive",
    )
    rows = [
        [
            each.op,
            each.group,
            str(each.ranks),
            number(each.count_per_step, 1 if (each.count_per_step or 0) >= 1 else 2),
            UNKNOWN if each.bytes_per_step is None else str(each.bytes_per_step),
            number(each.latency_ms.p50, 2),
            UNKNOWN
            if each.last_arrival is None
            else f"rank {each.last_arrival.rank} ({each.last_arrival.share:.0%})",
        ]
        for each in run.collectives
    ]
    return [printable(line) for line in columns(titles, rows)]


def _issuers(run: Run) -> list[str]:
    """The collectives that frameworks issue themselves."""
    found = recent(run)
    if not found:
        return []
    titles = ("issued by frameworks", "collective", "calls/step", "bytes/step")
    rows = [
        [
            f"{each.framework}: {each.purpose or each.function.rpartition('.')[2]}",
            f"{each.dtype} {each.op}".strip(),
            number(each.count_per_step, 1 if (each.count_per_step or 0) >= 1 else 2),
            UNKNOWN if each.bytes_per_step is None else str(each.bytes_per_step),
        ]
        for each in found
    ]
    return [printable(line) for line in columns(titles, rows)]


def _block(run: Run) -> str:
    steps = f"{run.steps}" if run.total_steps is None else f"{run.steps}/{run.total_steps}"
    where = "virtual devices" if run.devices == "virtual" else run.devices
    lines = [
        f"{run.title or run.run_id} · {run.strategy or 'strategy unknown'} · "
        f"{len(run.ranks)} × {where} · {run.state} · step {steps}",
        f"loss {number(run.loss.first, 3)} → {number(run.loss.last, 3)} · "
        f"{number(run.samples_per_s, 1)} samples/s · device 0 against the others: "
        f"peak {_ratio(run.balance.peak_device0_over_median)}, "
        f"traffic {_ratio(run.balance.traffic_device0_over_median)}",
        " ".join(name.rjust(width) for name, width in _COLUMNS),
        *(_row(rank) for rank in run.ranks),
    ]
    if peaks_of_processes(run):
        lines.append("peak: resident size of the whole process since it began, not a step's")
    lines += [told for told in (run.reason, run.note) if told]
    lines += [_clock(host) for host in run.other_hosts]
    lines += [f"{d.severity}: {d.kind}: {d.text}" for d in run.diagnoses]
    lines += [_earlier(alert) for alert in run.alerts if alert.ended_s is not None]
    return "\n".join(printable(line) for line in lines)


def _clock(host: HostView) -> str:
    silent = "" if host.silent_s is None else f", no report for {host.silent_s:.0f} s"
    if host.clock_offset_ms is None or host.clock_error_ms is None:
        return f"host {host.host}{silent}"
    return (
        f"host {host.host}: clock {host.clock_offset_ms:+.2f} ms from the head's, "
        f"±{host.clock_error_ms:.2f} ms by {host.clock_source}{silent}"
    )


def _earlier(alert: Alert) -> str:
    lasted_s = (alert.ended_s or alert.began_s) - alert.began_s
    return (
        f"earlier, from step {alert.since_step} for {lasted_s:.0f} s: {alert.severity}: "
        f"{alert.kind}: {alert.text}"
    )


def _row(rank: Rank) -> str:
    cells = (
        str(rank.rank),
        rank.device,
        rank.state,
        str(rank.steps),
        number(rank.step_ms.p50, 1),
        mebibytes(rank.memory.peak_bytes),
        mebibytes(rank.sent_bytes_per_step),
        mebibytes(rank.received_bytes_per_step),
        percent(rank.gil_wait),
        percent(rank.idle),
        percent(rank.runqueue_wait),
    )
    return " ".join(c.rjust(width) for c, (_, width) in zip(cells, _COLUMNS, strict=True))


def number(value: float | None, digits: int) -> str:
    """A number with `digits` decimals, `–` for None."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """A fraction as a whole percentage, `–` for None."""
    return UNKNOWN if share is None else f"{share:.0%}"


def _ratio(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}×"
