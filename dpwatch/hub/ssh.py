"""Runs on another host, over the system's OpenSSH: found there, their sockets forwarded here.

One `ssh` process a host is both: the master of its connection, and a session in which a few lines
of `sh` tell every second what runs there are (so the other side needs no dpwatch on its PATH). The
sockets of each run's hub are forwarded into a folder that looks like the run's own, `run.json` and
lock and all, so that a `Watcher` follows it as if it were here. When the connection is lost the
folder stays, the run's last state with it, and the connection is tried again.

Everything in the user's ssh configuration applies: names, keys, agent, jump hosts, known hosts.
When this process ends in whatever way, its end of the session closes, and so do session and master.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dpwatch.wire.paths import IPC_PATH_BYTES, RunDir, RunInfo, clean_run_id

FORWARDED = ("out", "ask")
"""The hub's sockets that a viewer needs."""

RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Waits between attempts to connect again, the last one for ever."""

COMMAND_S = 20.0
CYCLE_END = "."
LINE_CHARS = 1 << 16
MOST_RUNS = 256
"""Of one host; a listing is what another host says, and may be anything."""

_OPTIONS = (
    "ControlMaster=yes",
    "ControlPersist=no",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ConnectTimeout=15",
    "StreamLocalBindUnlink=yes",
    "ClearAllForwardings=yes",
    "LogLevel=ERROR",
)

# Ends with its standard input, so with whoever started it, and when nobody reads any more.
_SCRIPT = (
    "exec 3<&0; (while read -r x <&3; do :; done; kill $$) 2>/dev/null & "
    "u=$(id -u); while :; do "
    "for d in {places}; do "
    'for f in "$d"/*/run.json; do '
    '[ -O "$f" ] && [ -r "$f" ] && printf "%s\\t%s\\n" "$f" "$(tr -d "\\n" <"$f")"; '
    "done; done; echo . || exit; sleep 1; done"
)
_PLACES = (
    '"$DPWATCH_RUNTIME_DIR"',
    '"$XDG_RUNTIME_DIR/dpwatch"',
    '"/run/user/$u/dpwatch"',
    '"${TMPDIR:-/tmp}/dpwatch-$u"',
)


class SshError(Exception):
    """No host can be reached; the message says why, as ssh does."""


def listed_run(line: str) -> tuple[str, RunInfo] | None:
    """The `run.json` that a line of a listing tells of, None if it tells of none.

    Its folder's name becomes one here, and part of what ssh is asked to forward.
    """
    path, _, text = line.partition("\t")
    folder = Path(path).parent
    if clean_run_id(folder.name) != folder.name or ":" in path or not path.isprintable():
        return None
    try:
        return path, msgspec.json.decode(text, type=RunInfo)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        return None


class SshHost:
    """One host's runs, mirrored in a folder here.

    Args:
        name: As ssh takes it: `node1`, `user@node1`, `ssh://user@node1:2222`.
        ssh: The ssh command and options of the user's own.
        folder: An empty, private folder for this host.
        remote_dir: The runtime directory there, where it is none of the usual places.
    """

    def __init__(
        self, name: str, *, ssh: Sequence[str], folder: Path, remote_dir: str | None = None
    ) -> None:
        self.name = name
        self.trouble = ""
        self._ssh = tuple(ssh)
        self._folder = folder
        self._control = folder / "c"
        self._places = " ".join(_PLACES) if remote_dir is None else shlex.quote(remote_dir)
        self._mirrors: dict[str, Mirror] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._master: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`

    def connect(self) -> str:
        """Connects for the first time; ssh may ask for a password at the terminal.

        Returns:
            Why the host can't be reached, "" if it can.
        """
        self._start(batch=False)
        if not self._cycle():
            return self._why()
        self.start()
        return ""

    def start(self) -> None:
        """Follows from here on, on a thread of its own; connects (again) by itself."""
        self._thread = threading.Thread(target=self._run, name=f"ssh {self.name}", daemon=True)
        self._thread.start()

    def runs(self) -> list[RunDir]:
        """The mirrored runs, newest first. From any thread."""
        with self._lock:
            mirrors = sorted(self._mirrors.values(), key=lambda m: -m.info.started_wall_s)
            return [mirror.place for mirror in mirrors]

    @property
    def is_up(self) -> bool:
        """Whether there is a connection."""
        return self._master is not None and self._master.poll() is None

    def close(self) -> None:
        """Ends the connection; nothing of it stays on either side."""
        self._closing.set()
        if self._master is not None:
            self._master.terminate()  # which is also the end of what the thread reads
        if self._thread is not None:
            self._thread.join(COMMAND_S)
        self._end()
        for mirror in self._mirrors.values():
            mirror.close()
        self._errors.close()

    # -- the connection -----------------------------------------------------------------------

    def _run(self) -> None:
        attempt = 0
        while not self._closing.is_set():
            while not self._closing.is_set() and self._cycle():
                attempt = 0
            if self._closing.is_set():
                return
            wait_s = RETRY_S[min(attempt, len(RETRY_S) - 1)]
            attempt += 1
            self.trouble = f"{self.name}: {self._why()}; trying again"
            self._end()
            if not self._closing.wait(wait_s):
                self._start(batch=True)

    def _start(self, *, batch: bool) -> None:
        options = [f"-o{option}" for option in _OPTIONS]
        if batch:
            options.append("-oBatchMode=yes")
        script = _SCRIPT.format(places=self._places)
        self._errors.seek(0)
        self._errors.truncate()
        self._master = subprocess.Popen(
            [*self._ssh, "-S", str(self._control), *options, "-T", self.name,
             f"exec sh -c {shlex.quote(script)}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            errors="replace",
        )  # fmt: skip
        for mirror in self._mirrors.values():
            mirror.forwarded = False

    def _end(self) -> None:
        master = self._master
        if master is None:
            return
        master.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            master.wait(COMMAND_S)
        master.kill()
        with contextlib.suppress(OSError):  # what was still to be written has no reader any more
            master.communicate()

    def _cycle(self) -> bool:
        """Reads one listing of the runs there. Returns: False once the connection is gone."""
        master = self._master
        if master is None or master.stdout is None:
            return False
        listed: dict[str, RunInfo] = {}
        while line := master.stdout.readline(LINE_CHARS):
            if line.rstrip("\n") == CYCLE_END:
                self.trouble = ""
                self._update(listed)
                return True
            found = listed_run(line)
            if found is not None and len(listed) < MOST_RUNS:
                listed[found[0]] = found[1]
        return False

    def _why(self) -> str:
        """What ssh said last, else how it ended."""
        if self._master is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._master.wait(1.0)
        self._errors.seek(0)
        said = [line.strip() for line in self._errors.read(8192).splitlines() if line.strip()]
        return said[-1] if said else "the connection was closed"

    # -- the runs there -----------------------------------------------------------------------

    def _update(self, listed: dict[str, RunInfo]) -> None:
        for path in [path for path in self._mirrors if path not in listed]:
            with self._lock:
                mirror = self._mirrors.pop(path)
            self._forward("cancel", mirror)
            mirror.close()
        for path, info in listed.items():
            known = self._mirrors.get(path)
            if known is None:
                with contextlib.suppress(OSError):
                    known = Mirror(self._folder, Path(path).parent, info)
            if known is None:
                continue
            known.told(info)
            if not known.forwarded:
                known.forwarded = self._forward("forward", known)
            if known.forwarded:
                with self._lock:
                    self._mirrors[path] = known

    def _forward(self, what: str, mirror: Mirror) -> bool:
        """Asks the master to forward a run's sockets, or to stop."""
        ways = [way for name in FORWARDED for way in ("-L", mirror.way(name))]
        try:
            done = subprocess.run(
                [*self._ssh, "-S", str(self._control), "-oStreamLocalBindUnlink=yes",
                 "-O", what, *ways, self.name],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                timeout=COMMAND_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        if done.returncode and what == "forward":
            self.trouble = f"{self.name}: cannot forward a run's sockets: {done.stderr.strip()}"
        return not done.returncode


class Mirror:
    """A remote run's folder here: `run.json`, a lock that is held, forwarded sockets.

    Raises:
        OSError: It can't be made.
    """

    def __init__(self, folder: Path, remote: Path, info: RunInfo) -> None:
        self.remote = remote
        self.info = info
        self.forwarded = False
        self.place = RunDir(folder / remote.name)
        if len(os.fsencode(self.place.path / "ask")) > IPC_PATH_BYTES:
            raise OSError(f"{self.place.path} is too long for a unix socket")
        self.place.path.mkdir(mode=0o700)
        lock = self.place.try_lock()
        if lock is None:
            raise OSError(f"{self.place.path} is somebody else's")
        self._lock_fd = lock
        self.place.write_info(info)

    def told(self, info: RunInfo) -> None:
        """What `run.json` says there now; another hub's sockets have to be forwarded anew."""
        if info != self.info:
            self.info, self.forwarded = info, False
            self.place.write_info(info)

    def way(self, name: str) -> str:
        """A socket's path here and there, as `-L` takes them."""
        return f"{self.place.path / name}:{self.remote / name}"

    def close(self) -> None:
        """Removes the folder."""
        self.place.remove()
        os.close(self._lock_fd)


class SshHosts:
    """All hosts of one viewer, in a private folder that goes when they are closed."""

    def __init__(
        self, names: Sequence[str], *, ssh: Sequence[str], remote_dir: str | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dpw-", ignore_cleanup_errors=True)
        self.hosts: list[SshHost] = []
        for index, name in enumerate(names):
            folder = Path(self._folder.name) / str(index)
            folder.mkdir(mode=0o700)
            self.hosts.append(SshHost(name, ssh=ssh, folder=folder, remote_dir=remote_dir))

    def connect(self) -> list[str]:
        """Connects to each in turn; one that is down is tried again later.

        Returns:
            What went wrong, a line a host.

        Raises:
            SshError: None of them can be reached.
        """
        wrong = [f"{host.name}: {why}" for host in self.hosts if (why := host.connect())]
        if len(wrong) == len(self.hosts):
            raise SshError("; ".join(wrong))
        for host in self.hosts:
            if not host.is_up:
                host.start()
        return wrong

    def runs(self) -> list[RunDir]:
        """All hosts' runs."""
        return [place for host in self.hosts for place in host.runs()]

    @property
    def notice(self) -> str:
        """What is wrong with hosts, or that nothing runs on them."""
        troubles = [host.trouble for host in self.hosts if host.trouble]
        if troubles:
            return " · ".join(troubles)
        idle = [host.name for host in self.hosts if not host.runs()]
        if len(idle) == len(self.hosts):
            return (
                f"no run on {', '.join(idle)}; start one there with "
                "`dpwatch run -- torchrun … train.py`"
            )
        return ""

    def close(self) -> None:
        """Ends all connections."""
        for host in self.hosts:
            host.close()
        self._folder.cleanup()
