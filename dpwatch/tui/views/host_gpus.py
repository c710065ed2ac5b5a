"""GPUs of hosts without a watched run: this host's, or those over ssh. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dpwatch.run.model.snapshot import HostGpu
from dpwatch.text_safety import clean
from dpwatch.tui.draw import format as fmt
from dpwatch.tui.draw.bars import gauge
from dpwatch.tui.draw.layout import Block, heading
from dpwatch.tui.draw.palette import Palette
from dpwatch.tui.draw.styled_line import Text
from dpwatch.tui.draw.text import fitted, left, line, right, wrapped
from dpwatch.viewer.host_gpus import imbalance

_FIXED = 3 + 1 + 5 + 1 + 20 + 8 + 7
"""Cells of a row besides its name and its two bars."""

_LEAST = 3
"""Lines of a host: heading, titles, and one GPU or how many there are."""


def gpu_lines(gpus: Sequence[HostGpu], width: int, height: int, palette: Palette) -> Block:
    """Each host's GPUs below each other, in at most `height` lines."""
    hosts = list(dict.fromkeys(gpu.host for gpu in gpus))
    lines: Block = []
    for done, host in enumerate(hosts):
        room = (height - len(lines)) // (len(hosts) - done)
        own = [gpu for gpu in gpus if gpu.host == host]
        lines += _of_host(host, own, width, max(room, _LEAST), palette)
    return lines[:height]


def _of_host(
    host: str, gpus: Sequence[HostGpu], width: int, height: int, palette: Palette
) -> Block:
    """A row per GPU with load, memory and processes, and whether one holds far more."""
    title = f"GPUs of {clean(host, 40)}" if host else "GPUs of this host"
    source = "training or not" if host else "by NVML, training or not"
    lines = [heading(title, width, palette, source), _titles(width, palette)]
    said = imbalance(gpus)
    below = wrapped(f"! {said}.", width, palette.warn) if said else []
    room = height - len(lines) - len(below)
    each_with_users = sum(2 if gpu.processes else 1 for gpu in gpus) <= room
    shown = gpus if len(gpus) <= room else gpus[: max(room - 1, 0)]
    for gpu in shown:
        lines.append(_row(gpu, width, palette))
        if each_with_users and gpu.processes:
            lines.append(fitted(_users(gpu, palette), width))
    if len(shown) < len(gpus):
        lines.append(line((f"    and {len(gpus) - len(shown)} more", palette.muted)))
    return [*lines, *below]


def _titles(width: int, palette: Palette) -> Text:
    wide = (width - _FIXED) // 3
    load = left("load", wide + 6)
    names = f"    {left('', wide - 1)}{load}{left('memory', wide)}{right('used', 20)}"
    return fitted(line((names, palette.muted)), width)


def _row(gpu: HostGpu, width: int, palette: Palette) -> Text:
    wide = (width - _FIXED) // 3
    used, capacity = gpu.used_bytes, gpu.capacity_bytes
    share = used / capacity if used is not None and capacity else None
    warm = fmt.UNKNOWN if gpu.temperature_c is None else f"{gpu.temperature_c:.0f} °C"
    power = fmt.UNKNOWN if gpu.power_w is None else f"{gpu.power_w:.0f} W"
    of = f"{fmt.size(used)} of {fmt.size(capacity)}"
    return fitted(
        line(
            (right(str(gpu.index), 3), palette.strong),
            (" " + left(clean(gpu.name), wide - 2) + " ", palette.text),
            gauge(gpu.util, wide, palette, palette.accent),
            (right(fmt.share(gpu.util), 5) + " ", palette.text),
            gauge(share, wide, palette, palette.good),
            (right(of, 20), palette.strong),
            (right(warm, 8), palette.text),
            (right(power, 7), palette.text),
        ),
        width,
    )


def _users(gpu: HostGpu, palette: Palette) -> Text:
    told = [
        f"{clean(each.name, 24) or 'process'} {each.pid} {fmt.size(each.used_bytes)}"
        for each in sorted(gpu.processes, key=lambda process: -(process.used_bytes or 0))
    ]
    return line(("      " + ", ".join(told), palette.muted))
