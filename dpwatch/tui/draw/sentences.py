"""Sentences about runs, from the snapshot's numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dpwatch.run.model.snapshot import IssuerStats, Run, RunView
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt

UNEVEN = 1.15
"""From this ratio on (or below its inverse) device 0 is called uneven."""

MANY_ROWS = 16
"""With more rows than these, some are likely to be off the screen."""

ODD_STATES = ("lost", "failed", "stalled", "stale")

STRATEGIES = {
    "single": "one device",
    "dp": "nn.DataParallel",
    "ps-gpu0": "parameter server on device 0",
    "ps-cpu": "parameter server on the host",
    "ps-sharded": "sharded parameter server",
    "ddp": "DistributedDataParallel",
    "ddp-mp": "DDP over model parallel",
    "zero1": "ZeRO-1: optimizer states sharded",
    "zero2": "ZeRO-2: gradients sharded too",
    "zero3": "ZeRO-3: parameters sharded too",
    "fsdp1": "FullyShardedDataParallel",
    "fsdp": "fully_shard (FSDP2)",
    "hsdp": "hybrid sharding (HSDP)",
}


def strategy_of(run: Run) -> str:
    """A run's strategy, or a dash if unknown."""
    return clean(run.strategy, 16) or fmt.UNKNOWN


def run_title(run: Run) -> str:
    """A run's name for people: strategy and title."""
    title = clean(run.title, 60)
    return f"{strategy_of(run)} · {title}" if title else strategy_of(run)


def strategy_names(views: Sequence[RunView]) -> dict[str, str]:
    """Each run's strategy, by its id; equal ones with the time the run began."""
    alike = Counter(strategy_of(view.run) for view in views)
    return {
        run.run_id: f"{name} {fmt.time_of_day(run.began_s)}" if alike[name] > 1 else name
        for run, name in ((view.run, strategy_of(view.run)) for view in views)
    }


def plural(number: int, noun: str) -> str:
    """`1 device`, `4 devices`, `2 processes`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def devices_of(view: RunView) -> tuple[str, str]:
    """How many devices of what kind, and where; virtual ones are named as such."""
    run, host = view.run, f"{clean(view.ssh_host, 24)}'s" if view.ssh_host else "this host's"
    number = len(run.ranks)
    if run.devices == "virtual":
        host = host if len(run.hosts) <= 1 else "the hosts'"
        cores = "CPU cores" if run.cores is None else plural(run.cores, "CPU core")
        return plural(number, "virtual device"), f"on {host} {cores}"
    hosts = f"on {plural(len(run.hosts), 'host')}" if len(run.hosts) > 1 else ""
    if not hosts and run.hosts:
        hosts = f"on {clean(run.hosts[0], 24)}"
    noun = {"cuda": "CUDA device", "cpu": "CPU device"}.get(run.devices, "device")
    return plural(number, noun), hosts


def processes_of(run: Run) -> int:
    """How many processes have reported so far."""
    return len({rank.rank for rank in run.ranks})


def layout_of(run: Run) -> str:
    """Processes (a `dp` run has one, whatever its world size) and their backend."""
    backend = clean(run.backend, 16)
    via = f", {backend}" if backend and backend != run.devices else ""
    return f"{processes_of(run)}{via}"


def odd_states(run: Run) -> str:
    """How many ranks are in a bad state, if there are more ranks than fit on a screen."""
    if len(run.ranks) <= MANY_ROWS:
        return ""
    counts = Counter({rank.rank: rank.state for rank in run.ranks}.values())
    return ", ".join(f"{counts[state]} {state}" for state in ODD_STATES if counts[state])


def balance_sentence(run: Run) -> str:
    """Device 0 against the rest, in words and numbers."""
    if len(run.ranks) < 2:
        return "One device: nothing to balance." if run.ranks else "No device known yet."
    memory = run.balance.peak_device0_over_median
    traffic = run.balance.traffic_device0_over_median
    if memory is None and traffic is None:
        return "Device 0 against the rest: not measured yet."
    if uneven(memory) or uneven(traffic):
        return "Device 0 " + " and ".join(_uneven_parts(memory, traffic)) + "."
    even = [f"{fmt.ratio(memory)} the others' memory"] if memory is not None else []
    if traffic is not None:
        even.append(f"{fmt.ratio(traffic)} their traffic")
    return f"Balanced: device 0 has {', '.join(even)}."


def _uneven_parts(memory: float | None, traffic: float | None) -> list[str]:
    parts = []
    if memory is not None:
        parts.append(f"holds {fmt.ratio(memory)} the others' memory")
    if traffic is not None:
        parts.append(f"carries {fmt.ratio(traffic)} their traffic")
    return parts


def uneven(value: float | None) -> bool:
    """Whether a ratio is far enough from 1 to be called uneven."""
    return value is not None and not 1 / UNEVEN < value < UNEVEN


def collective_name(op: str) -> str:
    """c10d's name in the usual spelling."""
    return clean(op, 24).replace("_", "-") or fmt.UNKNOWN


def issuer_name(stats: IssuerStats) -> str:
    """Who issued a collective, and why: `Lightning: SIGTERM flag`; else the function's name."""
    purpose = stats.purpose or stats.function.rpartition(".")[2]
    return clean(f"{stats.framework}: {purpose}", 52)
