"""Follows the runs of another host over the system's OpenSSH, by forwarding their hubs' sockets.

One `ssh` process per host is both the master of its connection and a session that runs the script
of `agent_script`. Each run's socket is forwarded into a directory that looks like the run's own,
with `run.json` and lock, so that a `Watcher` follows it like a local run. If the connection is
lost, the directory and the run's last view stay, and the connection is retried.

Everything in the user's ssh configuration applies: names, keys, agent, jump hosts, known hosts.
However this process ends, its end of the session closes, which ends session and master too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from dpwatch.run.model.snapshot import HostGpu
from dpwatch.runtime.paths import RunDir, RunInfo
from dpwatch.viewer.remote.agent_script import LINE_CHARS, NAME, Listing, script
from dpwatch.viewer.remote.run_mirror import RunMirror

RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Waits between attempts to reconnect; the last one repeats."""

COMMAND_S = 20.0

_OPTIONS = (
    "ControlMaster=yes",
    "ControlPersist=no",
    "Compression=yes",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ConnectTimeout=15",
    "StreamLocalBindUnlink=yes",
    "ClearAllForwardings=yes",
    "LogLevel=ERROR",
)
_PROMPTS = re.compile(
    r"Permission denied|Host key verification failed|authentication failures", re.I
)
"""ssh's errors in batch mode where it would otherwise have prompted."""

_BEHIND = re.compile(r"Connection (closed|reset) by UNKNOWN|kex_exchange_identification", re.I)
_CHANGED_KEY = re.compile(r"host key for .* has changed|HOST IDENTIFICATION HAS CHANGED", re.I)
_KNOWN_AT = re.compile(r"Offending .* key in (.+)")


class SshHost:
    """Mirrors the runs of one host in a local directory.

    Args:
        name: Destination for ssh: `node1`, `user@node1`, `ssh://user@node1:2222`.
        ssh: The ssh command with the user's options.
        folder: An empty, private directory for this host.
        remote_dir: The runtime directory there, None for the usual ones.
        remote_dpwatch: Path of a dpwatch there, if it is not on the PATH.

    Attributes:
        trouble: Why the host or a run can't be followed now: a line that starts with its name.
        why: Why the last attempt to connect failed, "" if it didn't.
    """

    def __init__(
        self,
        name: str,
        *,
        ssh: Sequence[str],
        folder: Path,
        remote_dir: str | None = None,
        remote_dpwatch: str = NAME,
    ) -> None:
        self.name = name
        self.trouble = self.why = ""
        self._ssh = tuple(ssh)
        self._folder = folder
        self._control = folder / "c"
        self._script = script(remote_dir, remote_dpwatch)
        self._remote_dpwatch = remote_dpwatch
        self._listing = Listing(name)
        self._mirrors: dict[str, RunMirror] = {}
        self._silent: set[RunMirror] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._tried = threading.Event()
        self._released = threading.Event()
        self._master: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`

    def connect_interactively(self) -> None:
        """Connects for the first time; ssh may prompt at the terminal."""
        self._start(batch=False)
        if self._cycle():
            self.why = ""
        else:
            self._note_failure()
            self._end()
        self._tried.set()

    def start(self) -> None:
        """Starts a thread that connects, if necessary, and follows the host.

        ssh never prompts in it. After the first failure it waits for `allow_retries`.
        """
        self._thread = threading.Thread(target=self._run, name=f"ssh {self.name}", daemon=True)
        self._thread.start()

    def allow_retries(self) -> None:
        """Makes the thread retry after failures."""
        self._released.set()

    def was_tried(self, timeout_s: float) -> bool:
        """Waits for the end of the first attempt. Returns False after `timeout_s`."""
        return self._tried.wait(timeout_s)

    @property
    def needs_prompt(self) -> bool:
        """Whether the last attempt failed for lack of a password or a confirmation."""
        return bool(_PROMPTS.search(self.why))

    def runs(self) -> list[RunDir]:
        """The mirrored runs, newest first. Thread-safe."""
        with self._lock:
            mirrors = sorted(self._mirrors.values(), key=lambda m: -m.info.started_wall_s)
            return [mirror.place for mirror in mirrors]

    @property
    def is_up(self) -> bool:
        """Whether a connection exists or is being made."""
        return self._master is not None and self._master.poll() is None

    @property
    def is_reached(self) -> bool:
        """Whether the host has answered and is still connected."""
        return self.is_up and self._tried.is_set()

    @property
    def is_followed(self) -> bool:
        """Whether `start` has been called."""
        return self._thread is not None

    @property
    def gpus(self) -> tuple[HostGpu, ...]:
        """Its recent GPU figures, while it is connected and has no run."""
        return () if not self.is_up or self.runs() else self._listing.gpus

    @property
    def has_queried_gpus(self) -> bool:
        """Whether its GPUs have been queried."""
        return self._listing.dpwatch is not None

    @property
    def idle(self) -> str:
        """A line for a host without a run, which says how to start one."""
        if not self._tried.is_set():
            return f"connecting to {self.name}"
        command = self._listing.dpwatch or NAME
        line = f"no run on {self.name}; start one there with `{command} run -- torchrun … train.py`"
        if self._listing.dpwatch == "":
            named = self._remote_dpwatch
            missing = "its PATH has no dpwatch" if named == NAME else f"there is no {named}"
            line += (
                f" ({missing}: `pip install` it into the Python that trains, or pass its path as "
                "--remote-dpwatch)"
            )
        if self._listing.trouble:
            line += f"; nvidia-smi there: {self._listing.trouble}"
        return line

    def close(self) -> None:
        """Ends the connection, and cleans up on both sides."""
        self._closing.set()
        self._released.set()
        if self._master is not None:
            self._master.terminate()  # the thread then reads end of file
        if self._thread is not None:
            self._thread.join(COMMAND_S)
        self._end()
        for mirror in self._mirrors.values():
            mirror.close()
        self._errors.close()

    # -- the connection -----------------------------------------------------------------------

    def _run(self) -> None:
        attempt = 0
        if self._master is None:
            self._start(batch=True)
        while not self._closing.is_set():
            while not self._closing.is_set() and self._cycle():
                attempt = 0
                self.why = ""
                self._tried.set()
            if self._closing.is_set():
                return
            self._note_failure()
            self.trouble = f"{self.name}: {self.why}; trying again"
            self._end()
            self._tried.set()
            self._released.wait()
            if self.is_up:  # connected meanwhile by `connect_interactively`
                continue
            wait_s = RETRY_S[min(attempt, len(RETRY_S) - 1)]
            attempt += 1
            if not self._closing.wait(wait_s):
                self._start(batch=True)

    def _start(self, *, batch: bool) -> None:
        """Starts ssh; with `batch` it never prompts.

        In batch mode it has no terminal either: jump hosts have their own ssh processes, which
        ignore `BatchMode` and would prompt on the screen.
        """
        options = [f"-o{option}" for option in _OPTIONS]
        if batch:
            options.append("-oBatchMode=yes")
        self._errors.seek(0)
        self._errors.truncate()
        self._listing = Listing(self.name)
        self._master = subprocess.Popen(
            [*self._ssh, "-S", str(self._control), *options, "-T", self.name,
             f"exec sh -c {shlex.quote(self._script)}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            errors="replace", start_new_session=batch,
            env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"} if batch else None,
        )  # fmt: skip
        for mirror in self._mirrors.values():
            mirror.forwarded = mirror.has_answered = False

    def _end(self) -> None:
        master = self._master
        if master is None:
            return
        master.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            master.wait(COMMAND_S)
        master.kill()
        with contextlib.suppress(OSError):  # flushing stdin fails, since ssh has ended
            master.communicate()

    def _cycle(self) -> bool:
        """Reads one listing of runs. Returns False if the connection is lost."""
        master = self._master
        if master is None or master.stdout is None:
            return False
        while line := master.stdout.readline(LINE_CHARS):
            if self._listing.feed(line):
                self.trouble = self._update(self._listing.runs)
                return True
        return False

    def _note_failure(self) -> None:
        """Sets `why` from ssh's standard error."""
        if self._master is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._master.wait(1.0)
        self._errors.seek(0)
        self.why = failure_reason(self.name, self._errors.read(8192))

    # -- the runs there -----------------------------------------------------------------------

    def _update(self, listed: dict[str, RunInfo]) -> str:
        """Mirrors the listed runs. Returns a line on what failed, "" if nothing did."""
        trouble = ""
        for path in [path for path in self._mirrors if path not in listed]:
            with self._lock:
                mirror = self._mirrors.pop(path)
            self._forward("cancel", mirror)
            mirror.close()
        for path, info in listed.items():
            known = self._mirrors.get(path)
            if known is None:
                try:
                    known = RunMirror(self._folder, Path(path).parent, info, self.name)
                except OSError as error:
                    trouble = f"{self.name}: cannot show run {info.run_id}: {error}"
                    continue
            known.update_info(info)
            if not known.forwarded:
                failure = self._forward("forward", known)
                known.forwarded = not failure
                if failure:
                    trouble = f"{self.name}: cannot forward a run's sockets: {failure}"
            if known.forwarded:
                with self._lock:
                    self._mirrors[path] = known
        silent = [mirror for mirror in self._mirrors.values() if mirror.is_refused()]
        # Silent twice, since a run may just have ended, which the next listing shows.
        if self._silent.intersection(silent):
            trouble = (
                f"{self.name} refuses to forward its runs' sockets: its sshd_config must allow it "
                "(AllowStreamLocalForwarding), or run dpwatch there"
            )
        self._silent = set(silent)
        return trouble

    def _forward(self, what: str, mirror: RunMirror) -> str:
        """Makes the master forward a run's socket, or cancel that. Returns an error or ""."""
        try:
            done = subprocess.run(
                [*self._ssh, "-S", str(self._control), "-oStreamLocalBindUnlink=yes",
                 "-O", what, "-L", mirror.forwarding, self.name],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                timeout=COMMAND_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"no answer within {COMMAND_S:.0f} s"
        return done.stderr.strip() or f"ssh exit code {done.returncode}" if done.returncode else ""


def failure_reason(name: str, stderr: str) -> str:
    """Why a host can't be reached, in one line, from ssh's standard error."""
    if _CHANGED_KEY.search(stderr):
        known = _KNOWN_AT.search(stderr)
        where = known.group(1).strip() if known else "known_hosts"
        return (
            f"its host key differs from the one in {where}: the connection may be intercepted; "
            f"if the host has a new key, remove the old one with `ssh-keygen -R` ({name}'s)"
        )
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # A jump host's ssh reports the cause, then the one behind it that its connection was closed.
    chosen = [line for line in lines if _PROMPTS.search(line)]
    chosen = chosen or [line for line in lines if not _BEHIND.match(line)] or lines
    return chosen[-1] if chosen else "the connection was closed"
