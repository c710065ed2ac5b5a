"""What a comparison shows, a sentence per fact: overload, balance, sharding."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from dpwatch.run.derive.comparison import (
    devices,
    largest,
    model_state_bytes,
    peak_bytes,
    peaks_of_processes,
)
from dpwatch.run.model.largest_batch import LargestBatch
from dpwatch.run.model.snapshot import Run, RunView, Snapshot
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.sentences import UNEVEN, strategy_of, uneven
from dpwatch.tui.snapshots.frame import latest_by_strategy

SHARDED = 0.8
"""A run whose devices keep at most this share of what another's keep is said to shard it."""

FULLER = 1.05
"""A device whose peak is this many times another's is called fuller."""

NAMED = 4
"""With more balanced runs than this, they are counted instead of named."""

_FRACTIONS = {2: "half", 3: "a third", 4: "a quarter", 8: "an eighth"}


def verdict(snapshot: Snapshot) -> list[str]:
    """A session's lesson, else what stands out between strategies."""
    lesson = snapshot.progress.lesson if snapshot.progress else ""
    return [lesson] if lesson else compare_sentences(latest_by_strategy(snapshot))


def compare_sentences(views: Sequence[RunView]) -> list[str]:
    """What stands out between strategies; empty with fewer than two."""
    runs = [view.run for view in views]
    if len(runs) < 2:
        return []
    sharded = _on_sharding(runs)
    told = (
        *map(_on_overload, runs, _names(runs)),
        _on_even(runs),
        sharded or _on_peak(runs),
        _on_batch(views),
        _on_speed(runs),
    )
    return [each for each in told if each]


def _names(runs: Sequence[Run]) -> list[str]:
    """Strategies, with the start of the title if several runs have the same one."""
    times = Counter(strategy_of(run) for run in runs)
    return [
        f"{strategy_of(run)} {clean(run.title.partition(' · ')[0], 24)}".rstrip()
        if times[strategy_of(run)] > 1
        else strategy_of(run)
        for run in runs
    ]


def _on_overload(run: Run, name: str) -> str:
    """A sentence with figures about a run whose device 0 has more than its share."""
    balance = run.balance
    memory = None if peaks_of_processes(run) else balance.peak_device0_over_median
    traffic = balance.traffic_device0_over_median
    heavy, busy = (value is not None and value >= UNEVEN for value in (memory, traffic))
    carries = f"carries {fmt.ratio(traffic)}"
    if not heavy:
        return f"{name}: device 0 {carries} the others' traffic." if busy else ""
    peaks = [row.memory.peak_bytes or 0 for row in devices(run)]
    less = [peak for peak in peaks if _fuller(peaks[0], peak)]
    typical = statistics.median(less)
    others = f"the others' {'median ' if _fuller(max(less), typical) else ''}{fmt.size(typical)}"
    times = peaks[0] / typical if typical else None
    at = f"{fmt.size(peaks[0])}{' or more' if _fuller(max(peaks), peaks[0]) else ''}"
    excess = f"at {at}, {fmt.ratio(times)} {others}"
    as_full = len(peaks) - len(less)
    if as_full > 1:
        text = f"{name}: {as_full} of {len(peaks)} devices peak {excess}"
        return f"{text}; device 0 {carries} the others' traffic." if busy else f"{text}."
    text = f"{name}: device 0 peaks {excess}" + (f", and {carries} their traffic" if busy else "")
    return f"{text}; it runs out of memory first." if _alike_in_size(run) else f"{text}."


def _fuller(peak: float, other: float) -> bool:
    return peak > FULLER * other


def _alike_in_size(run: Run) -> bool:
    """Whether the fullest device runs out first: virtual ones are all of one size."""
    sizes = {row.memory.capacity_bytes for row in devices(run)}
    return len(sizes) == 1 and (None not in sizes or run.devices == "virtual")


def _on_even(runs: Sequence[Run]) -> str:
    even = [run for run in runs if _known_even(run)]
    if not even:
        return ""
    names = _listed([strategy_of(run) for run in even])
    if len(even) > NAMED:
        names = f"{len(even)} of {len(runs)}"
    return f"{names} {'loads' if len(even) == 1 else 'load'} all devices equally."


def _known_even(run: Run) -> bool:
    balance = run.balance
    known = (balance.peak_device0_over_median, balance.traffic_device0_over_median)
    return None not in known and not any(uneven(value) for value in known)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _on_sharding(runs: Sequence[Run]) -> str:
    """The run that keeps least between steps, compared with one that keeps a copy per device."""
    kept = [(nbytes, run) for run in runs if (nbytes := largest(run, model_state_bytes))]
    plain = next(((nbytes, run) for nbytes, run in kept if run.strategy == "ddp"), None)
    if plain is None:
        return ""
    whole, ddp = plain
    like = [pair for pair in kept if pair[1].model.param_bytes == ddp.model.param_bytes]
    # Of those that keep as little, the one with the lowest peak.
    least, run = min(like, key=lambda pair: (pair[0], largest(pair[1], peak_bytes) or math.inf))
    if least > SHARDED * whole or not _known_even(run):
        return ""
    text = (
        f"{strategy_of(run)} shards: each device keeps {fmt.size(least)} of parameters, gradients "
        f"and optimizer state, {_fraction(least / whole)} of ddp's {fmt.size(whole)}"
    )
    peaks = [largest(each, peak_bytes) for each in (run, ddp)]
    if None in peaks or any(peaks_of_processes(each) for each in (run, ddp)):
        return f"{text}."
    return f"{text}, and peaks at {fmt.size(peaks[0])}, not {fmt.size(peaks[1])}."


def _fraction(part: float) -> str:
    for number, name in _FRACTIONS.items():
        if abs(part * number - 1) < 0.02:
            return name
    return fmt.share(part)


def _on_peak(runs: Sequence[Run]) -> str:
    peaks = [(peak, run) for run in runs if (peak := largest(run, peak_bytes)) is not None]
    if len(peaks) < 2 or any(peaks_of_processes(run) for run in runs):
        return ""
    peaks.sort(key=lambda pair: pair[0])
    (low, least), (high, most) = peaks[0], peaks[-1]
    if fmt.size(high) == fmt.size(low):
        return f"The fullest device needs {fmt.size(high)} under each."
    return (
        f"The fullest device needs {fmt.size(low)} under {strategy_of(least)}, "
        f"{fmt.size(high)} under {strategy_of(most)}."
    )


def _on_batch(views: Sequence[RunView]) -> str:
    """The smallest and the largest of the largest batches, and the reason for the smallest."""
    found = [(view.largest_batch, view.run) for view in views if view.largest_batch]
    if len(found) < 2:
        return ""
    found.sort(key=lambda pair: pair[0].batch_per_gpu)
    (low, least), (high, most) = found[0], found[-1]
    if low.batch_per_gpu == high.batch_per_gpu:
        return f"The largest batch per device is {_batch(low)} under each."
    text = f"The largest batch per device: {_batch(low)} under {strategy_of(least)}"
    limiting, other = low.limiting, low.fullest_other
    if limiting and other and low.ran_out and not low.all_alike:
        full, room = fmt.share(limiting.fill), fmt.share(other.fill)
        text += f" ({clean(limiting.device, 16)} {full} full, the others at most {room})"
    return f"{text}, {_batch(high)} under {strategy_of(most)}."


def _batch(found: LargestBatch) -> str:
    return str(found.batch_per_gpu) if found.batch_per_gpu else "none"


def _on_speed(runs: Sequence[Run]) -> str:
    """Empty if devices are virtual: they share the host's cores, so times measure those."""
    known = [(run.samples_per_s or 0.0, run) for run in runs if run.devices != "virtual"]
    speeds = [(speed, run) for speed, run in known if speed > 0 and math.isfinite(speed)]
    if len(speeds) < 2:
        return ""
    speeds.sort(key=lambda pair: pair[0])
    (slow, slowest), (fast, fastest) = speeds[0], speeds[-1]
    if fast / slow < 1.05:
        return ""
    return (
        f"{strategy_of(fastest)} trains {fmt.ratio(fast / slow)} as many samples per second as "
        f"{strategy_of(slowest)}."
    )
