"""What a stalled thread waits in according to the kernel: a lock, a file, a process, ….

Read from `/proc/self/task/TID`: `stat` (its state), `syscall` (which call, on which descriptor) and
`wchan` (where in the kernel). A process may always inspect its own threads. It costs some 50 µs and
is done by the sender thread, only for a thread without progress for a second. Linux only.
"""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

_X86_64 = {
    0: "read", 1: "write", 2: "open", 7: "poll", 8: "lseek", 17: "pread", 18: "pwrite", 19: "read",
    20: "write", 23: "poll", 35: "sleep", 42: "connect", 43: "accept", 44: "send", 45: "receive",
    46: "send", 47: "receive", 61: "process", 72: "flock", 73: "flock", 74: "fsync", 75: "fsync",
    77: "truncate", 202: "lock", 230: "sleep", 232: "poll", 247: "process", 257: "open",
    270: "poll", 271: "poll", 277: "fsync", 281: "poll", 288: "accept", 295: "read", 296: "write",
    306: "fsync",
}  # fmt: skip
_AARCH64 = {
    22: "poll", 32: "flock", 46: "truncate", 56: "open", 63: "read", 64: "write", 65: "read",
    66: "write", 67: "pread", 68: "pwrite", 72: "poll", 73: "poll", 81: "fsync", 82: "fsync",
    83: "fsync", 84: "fsync", 95: "process", 98: "lock", 101: "sleep", 115: "sleep",
    202: "accept", 203: "connect", 206: "send", 207: "receive", 211: "send", 212: "receive",
    242: "accept", 260: "process",
}  # fmt: skip
_CALLS = {"x86_64": _X86_64, "aarch64": _AARCH64}.get(platform.machine(), {})
"""System calls that threads wait in, by number."""

_PLACES = (
    ("futex", "lock"), ("nanosleep", "sleep"), ("pipe", "pipe"), ("poll", "poll"),
    ("select", "poll"), ("do_wait", "process"), ("unix_stream", "socket"), ("tcp", "socket"),
    ("inet", "socket"), ("skb", "socket"), ("nfs", "disk"), ("rpc", "disk"), ("fuse", "disk"),
    ("ext4", "disk"), ("xfs", "disk"), ("jbd2", "disk"), ("folio", "disk"), ("io_schedule", "disk"),
    ("blk", "disk"),
)  # fmt: skip
"""What names of kernel functions mean, if the system call is unknown."""

_DOING = {
    "read": "reading from", "write": "writing to", "pread": "reading from", "pwrite": "writing to",
    "fsync": "flushing", "flock": "locking", "open": "opening a file", "truncate": "truncating",
    "send": "sending to", "receive": "receiving from", "connect": "connecting",
    "accept": "waiting for a connection", "lseek": "seeking in",
}  # fmt: skip
_ON_DESCRIPTOR = frozenset(_DOING) - {"open"}


_WORKER = {
    "lock": "waits for a lock", "sleep": "sleeps", "disk": "waits for a disk", "poll": "waits",
}  # fmt: skip


class Wait(NamedTuple):
    """What a thread waits in: `kind` as in `Beat.waits_in`, and on which object, as text."""

    kind: str = ""
    on: str = ""


NOTHING = Wait()


def wait_of(tid: int | None, pid: int | str = "self") -> Wait:
    """What a thread waits in (`core`: nothing, it runs native code), if that can be determined.

    Args:
        tid: Kernel thread id.
        pid: Its process, if not this one.
    """
    if tid is None:
        return NOTHING
    task = f"/proc/{pid}/task/{tid}"
    state = _read(f"{task}/stat").rpartition(")")[2][:2].strip()
    if state == "R":
        return Wait("core")
    if state not in ("S", "D", "I"):
        return NOTHING
    number, _, rest = _read(f"{task}/syscall").partition(" ")
    call = _CALLS.get(int(number)) if number.isdecimal() else None
    place = _read(f"{task}/wchan")
    found = _of_call(call, rest, pid) if call else NOTHING
    if not found.kind:
        found = Wait(next((kind for name, kind in _PLACES if name in place), ""))
    if state == "D" and found.kind != "lock":
        return Wait("disk", found.on)
    return found


def describe_worker(number: int, pid: int) -> str:
    """What a data loader's worker process does, as text."""
    who = f"its worker {number} (pid {pid})"
    state = _read(f"/proc/{pid}/stat").rpartition(")")[2][:2].strip()
    if state in ("", "Z", "X"):
        return f"{who} is dead"
    if state in ("T", "t"):
        return f"{who} is stopped"
    kind, on = wait_of(pid, pid)
    return f"{who} is {on}" if on else f"{who} {_WORKER.get(kind, 'runs')}"


def _of_call(call: str, arguments: str, pid: int | str) -> Wait:
    if call in ("sleep", "lock", "poll"):
        return Wait(call)
    first = arguments.partition(" ")[0]
    number = int(first, 16) if first.startswith("0x") else -1
    if call == "process":
        child = number & 0xFFFFFFFF
        known = 0 < child < 1 << 31
        return Wait(
            call, f"waiting for process {child}" if known else "waiting for a child process"
        )
    if call not in _ON_DESCRIPTOR:
        return Wait("file", _DOING.get(call, ""))
    kind, name = _descriptor(number, pid)
    return Wait(kind, f"{_DOING[call]} {name}".strip() if kind else "")


def _descriptor(number: int, pid: int | str) -> tuple[str, str]:
    try:
        path = os.readlink(f"/proc/{pid}/fd/{number}")
    except OSError:
        return "", ""
    if path.startswith("pipe:"):
        return "pipe", "a pipe"
    if path.startswith("socket:"):
        return "socket", "a socket"
    if path.startswith("/"):
        return "file", path
    return "", ""


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 512).decode(errors="replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)
