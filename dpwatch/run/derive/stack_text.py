"""Formats ranks' stacks as plain text, for pipes, logs and the clipboard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dpwatch.run.model.ranks import name_ranks
from dpwatch.run.model.snapshot import Run, RunView
from dpwatch.run.model.stacks import Group, RankStacks, groups
from dpwatch.text_safety import printable
from dpwatch.wire.messages import ThreadStack


def run_text(view: RunView, ranks: Sequence[int] = ()) -> str:
    """A run's stacks: ranks with equal stacks grouped, or each thread of the given ranks."""
    entries = [entry for entry in view.stacks if not ranks or entry.rank in ranks]
    lines = [_head(view.run)]
    if ranks:
        for entry in entries:
            lines += ["", *_rank(entry)]
    else:
        for group in groups(entries):
            lines += ["", *_group(group, len(entries))]
    return "\n".join(printable(line) for line in lines)


def _head(run: Run) -> str:
    return (
        f"{run.title or run.run_id} · {run.strategy or 'strategy unknown'} · {run.state} · "
        f"step {run.steps}; innermost frame first"
    )


def _group(group: Group, of: int) -> list[str]:
    name = group_name(group, of)
    if not group.frames:
        return [f"{name}: {why(group)}"]
    return [f"{name}: at {group.at}, {age(group.entries)}", *_frames(group.frames, group.theirs)]


def group_name(group: Group, of: int) -> str:
    """Name of a group: `rank 3`, `ranks 0-2 (3 of 4)`."""
    many = len(group.entries)
    return name_ranks(group.ranks, most=None) + (f" ({many} of {of})" if many > 1 else "")


def _rank(entry: RankStacks) -> list[str]:
    lines = [f"rank {entry.rank} · {entry.host} · pid {entry.pid}"]
    if entry.standing != "answered":
        lines[0] += f": {why(Group((entry,)))}"
    if entry.threads:
        lines[0] += f" · {age([entry])}"
    for thread in entry.threads:
        lines += [f"  {thread_name(thread)}", *_frames(thread.frames, thread.theirs)]
    if entry.left_out:
        lines.append(f"  … {entry.left_out} more threads")
    return lines


def _frames(frames: Sequence[str], theirs: int | None) -> list[str]:
    marks = ["  > " if index == theirs else "    " for index in range(len(frames))]
    return [f"  {mark}{frame}" for mark, frame in zip(marks, frames, strict=True)][::-1]


def thread_name(thread: ThreadStack) -> str:
    """Name of a thread: `MainThread (trains) · tid 4711`."""
    name = thread.name or "a thread that Python has not started"
    trains = " (trains)" if thread.training else ""
    return f"{name}{trains}" + (f" · tid {thread.tid}" if thread.tid is not None else "")


def why(group: Group) -> str:
    """Why a group has no stacks, and its last location, if its heartbeats agree on one."""
    places = {entry.seen_at for entry in group.entries}
    seen_s = max((entry.seen_s or 0.0 for entry in group.entries), default=0.0)
    text = group.entries[0].why
    if group.entries[0].standing == "silent" and len(places) == 1 and (place := places.pop()):
        text += f"; last seen at {place}, {seen_s:.0f} s ago"
    return text


def age(entries: Iterable[RankStacks]) -> str:
    """Age of the stacks: `taken 2 s ago`."""
    ages = [entry.age_s for entry in entries if entry.age_s is not None]
    return f"taken {max(ages):.0f} s ago" if ages else "never taken"
