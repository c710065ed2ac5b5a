"""The shell script that a session runs on another host, and the parser of its output.

The host needs no dpwatch. Once a second the script prints the `run.json` of every run with a living
hub, then a line with a full stop. While there are no runs, it queries the host's GPUs every few
seconds, with nvidia-smi or else an installed dpwatch, in the background so that a hanging driver
blocks nothing. Each line starts with its kind; lines of both are interleaved, but never split.

The script ends when its standard input is closed or its output is no longer read.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from dpwatch.run.model.snapshot import GpuProcess, HostGpu
from dpwatch.runtime.paths import RunInfo, clean_run_id
from dpwatch.viewer.remote import nvidia_smi

GPUS_EVERY_S = 3
OLD_S = 15.0
"""Age at which GPU figures are no longer shown; tools hang if the driver does."""

MOST_RUNS = 256
"""Runs per host, since another host's output may contain anything."""

MOST_LINES = 4096
"""Lines per query of GPUs."""

LINE_CHARS = 1 << 16
CYCLE_END = "."
NAME = "dpwatch"

_PLACES = (
    '"$DPWATCH_RUNTIME_DIR"',
    '"$XDG_RUNTIME_DIR/dpwatch"',
    '"/run/user/$u/dpwatch"',
    '"${TMPDIR:-/tmp}/dpwatch-$u"',
    '"/tmp/dpwatch-$u"',
)
# One line, since csh allows no line breaks within quotes, and without "!", which it would expand.
# If the lock can be taken, the hub is dead and its run.json is left over.
_SCRIPT = (
    "exec 3<&0; (while read -r x <&3; do :; done; kill $$) 2>/dev/null & "
    "u=$(id -u); g=; t=0; "
    'dead() {{ [ -f "$1" ] && command -v flock >/dev/null && flock -sn "$1" true; }} 2>/dev/null; '
    'told() {{ while read -r x; do printf "%s %s\\n" "$1" "$x"; done; }}; '
    "gpus() {{ "
    "p=$(command -v {dpwatch}); "
    "if command -v nvidia-smi >/dev/null; then "
    "a=$({gpus}); s=$?; c=$({processes}); "
    'if [ $s -eq 0 ]; then printf "%s\\n" "$a" | told gpu; printf "%s\\n" "$c" | told user; '
    'else printf "%s\\n" "$a" | told bad; fi; '
    'elif [ -n "$p" ]; then "$p" --once --json | told json; fi; '
    'printf "end %s\\n" "$p"; }} 2>/dev/null; '
    "while :; do n=; "
    "for d in {places}; do "
    'for f in "$d"/*/run.json; do '
    'if [ -O "$f" ] && [ -r "$f" ]; then dead "${{f%run.json}}lock" || {{ n=1; '
    'printf "run %s\\t%s\\n" "$f" "$(tr -d "\\n" <"$f")"; }}; fi; '
    "done; done; echo . || exit; "
    'if [ -z "$n" ] && [ $t -le 0 ]; then '
    '[ -n "$g" ] && kill -0 "$g" 2>/dev/null || {{ gpus </dev/null & g=$!; t={every}; }}; fi; '
    "t=$((t-1)); sleep 1; done"
)


def script(remote_dir: str | None, dpwatch: str) -> str:
    """The script for `sh` on the other host.

    Args:
        remote_dir: The runtime directory there, None for the usual ones.
        dpwatch: Path of a dpwatch there, or its name on the PATH.
    """
    return _SCRIPT.format(
        places=" ".join(_PLACES) if remote_dir is None else _word(remote_dir),
        dpwatch=_word(dpwatch),
        gpus=nvidia_smi.command("gpu", nvidia_smi.GPU_FIELDS),
        processes=nvidia_smi.command("compute-apps", nvidia_smi.PROCESS_FIELDS),
        every=GPUS_EVERY_S,
    )


def _word(path: str) -> str:
    """Quotes a path for `sh`; a leading `~/` stands for the home directory there."""
    if path.startswith("~/"):
        return f'"$HOME"/{shlex.quote(path[2:])}'
    return shlex.quote(path)


def listed_run(line: str) -> tuple[str, RunInfo] | None:
    """Parses a listed `run.json`: its path and content, None if invalid.

    The name of its directory is checked, since it is used here and in ssh's forwarding options.
    """
    path, _, text = line.partition("\t")
    folder = Path(path).parent
    if clean_run_id(folder.name) != folder.name or ":" in path or not path.isprintable():
        return None
    try:
        return path, msgspec.json.decode(text, type=RunInfo)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        return None


class _Summary(msgspec.Struct):
    """The GPUs of a `dpwatch.summary/1`; an older version has none."""

    gpus: list[HostGpu] = []


class Listing:
    """Parses the script's output line by line.

    Attributes:
        runs: Runs by path, as of the last complete listing.
        dpwatch: Path of dpwatch there, "" if not found, None if not known yet.
    """

    def __init__(self, host: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.runs: dict[str, RunInfo] = {}
        self.dpwatch: str | None = None
        self._host = host
        self._clock = clock
        self._queried_at = clock()
        self._gpus: tuple[HostGpu, ...] = ()
        self._trouble = ""
        self._partial: dict[str, RunInfo] = {}
        self._seen: dict[str, list[str]] = {}
        self._count = 0

    @property
    def gpus(self) -> tuple[HostGpu, ...]:
        """GPUs as of the last query, empty if that is too old."""
        return () if self._is_old else self._gpus

    @property
    def trouble(self) -> str:
        """What is wrong with the query of GPUs, "" if it works or there is no tool for it."""
        return "no answer" if self._is_old else self._trouble

    @property
    def _is_old(self) -> bool:
        return self._clock() - self._queried_at > OLD_S

    def feed(self, line: str) -> bool:
        """Parses a line. Returns whether it ends a listing of runs."""
        kind, _, rest = line.rstrip("\r\n").partition(" ")
        if kind == CYCLE_END:
            if self.runs or self._partial:  # GPUs are not queried while there is a run
                self._queried_at, self._gpus = self._clock(), ()
            self.runs, self._partial = self._partial, {}
            return True
        if kind == "run":
            found = listed_run(rest)
            if found is not None and len(self._partial) < MOST_RUNS:
                self._partial[found[0]] = found[1]
        elif kind == "end":
            self._update_gpus(rest.strip())
        elif kind in ("gpu", "user", "bad", "json") and self._count < MOST_LINES:
            self._count += 1
            self._seen.setdefault(kind, []).append(rest)
        return False

    def _update_gpus(self, dpwatch: str) -> None:
        seen, self._seen, self._count = self._seen, {}, 0
        self.dpwatch, self._queried_at = dpwatch, self._clock()
        errors = [line.strip() for line in seen.get("bad", ()) if line.strip()]
        self._trouble = errors[0][:200] if errors else ""
        if "json" in seen:
            self._gpus = _from_json(self._host, "".join(seen["json"]))
        else:
            self._gpus = nvidia_smi.gpus(self._host, seen.get("gpu", ()), seen.get("user", ()))


def _from_json(host: str, text: str) -> tuple[HostGpu, ...]:
    """GPUs as reported by another dpwatch; values out of range become None."""
    try:
        found = msgspec.json.decode(text, type=_Summary).gpus
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        return ()
    return tuple(_of_host(host, gpu) for gpu in found[: nvidia_smi.MOST_GPUS])


def _of_host(host: str, gpu: HostGpu) -> HostGpu:
    most = nvidia_smi.NAME_CHARS
    users = tuple(
        GpuProcess(each.pid, each.name[:most], each.used_bytes)
        for each in gpu.processes[: nvidia_smi.MOST_PROCESSES]
    )
    util = gpu.util if gpu.util is not None and 0 <= gpu.util <= 1 else None
    return msgspec.structs.replace(gpu, name=gpu.name[:most], util=util, processes=users, host=host)
