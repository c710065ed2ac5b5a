"""Connects to all hosts of a `dpwatch ssh` in parallel, and follows each independently."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dpwatch.run.model.snapshot import HostGpu
from dpwatch.runtime.paths import RunDir
from dpwatch.viewer.remote.agent_script import NAME
from dpwatch.viewer.remote.run_mirror import Workspace
from dpwatch.viewer.remote.ssh_host import SshHost

PATIENCE_S = 2.0
"""How long the screen waits for other hosts once one has answered."""

GPUS_S = 6.0
"""How long one snapshot waits for GPU figures; a driver that is not loaded starts slowly."""


class SshError(Exception):
    """No host can be reached; the message contains ssh's reasons."""


class SshHosts:
    """All hosts of one viewer, with a private directory that is removed when closed.

    Args:
        names: Destinations for ssh.
        ssh: The ssh command with the user's options.
        remote_dir: The runtime directory there, None for the usual ones.
        remote_dpwatch: Path of a dpwatch there, if it is not on the PATH.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        ssh: Sequence[str],
        remote_dir: str | None = None,
        remote_dpwatch: str = NAME,
    ) -> None:
        self._workspace = Workspace()
        self.hosts: list[SshHost] = []
        for index, name in enumerate(dict.fromkeys(names)):
            folder = self._workspace.path / str(index)
            folder.mkdir(mode=0o700)
            self.hosts.append(
                SshHost(
                    name,
                    ssh=ssh,
                    folder=folder,
                    remote_dir=remote_dir,
                    remote_dpwatch=remote_dpwatch,
                )
            )

    def connect(self, *, all_of_them: bool = False) -> list[str]:
        """Connects to all hosts in parallel, then one by one to those where ssh has to prompt.

        Unreachable hosts are retried later. Once one host has answered, the others are waited for
        only `PATIENCE_S`.

        Args:
            all_of_them: Wait for every host.

        Returns:
            Errors, one line per host.

        Raises:
            SshError: No host can be reached.
        """
        if len(self.hosts) == 1:
            self.hosts[0].connect_interactively()
        else:
            for host in self.hosts:
                host.start()
            self._wait(None if all_of_them else PATIENCE_S)
            for host in self.hosts:
                if host.was_tried(0) and host.needs_prompt:
                    host.connect_interactively()
        wrong = [f"{host.name}: {host.why}" for host in self.hosts if host.why]
        if len(wrong) == len(self.hosts):
            raise SshError("; ".join(wrong))
        for host in self.hosts:
            if not host.is_followed:
                host.start()
            host.allow_retries()
        return wrong

    def _wait(self, patience_s: float | None) -> None:
        """Waits until every host has been tried, or `patience_s` after the first answer."""
        waiting = list(self.hosts)
        until: float | None = None
        while waiting and (until is None or time.monotonic() < until):
            waiting = [host for host in waiting if not host.was_tried(0.02)]
            if until is None and patience_s is not None and any(h.is_reached for h in self.hosts):
                until = time.monotonic() + patience_s

    def wait_for_gpus(self) -> None:
        """Waits for the GPU figures of hosts without a run, at most `GPUS_S`."""
        until = time.monotonic() + GPUS_S
        for host in self.hosts:
            while host.is_up and not host.runs() and not host.has_queried_gpus:
                if time.monotonic() > until:
                    return
                time.sleep(0.02)

    def runs(self) -> list[RunDir]:
        """All hosts' runs."""
        return [place for host in self.hosts for place in host.runs()]

    def gpus(self) -> tuple[HostGpu, ...]:
        """GPUs of hosts without a run."""
        return tuple(gpu for host in self.hosts for gpu in host.gpus)

    @property
    def notice(self) -> str:
        """One line for each host with a problem or without a run."""
        runs = bool(self.runs())
        lines = [
            host.trouble or (_idle_line(host) if runs else host.idle)
            for host in self.hosts
            if host.trouble or not host.runs()
        ]
        return "\n".join(lines)

    def close(self) -> None:
        """Ends all connections."""
        for host in self.hosts:
            host.close()
        self._workspace.close()


def _idle_line(host: SshHost) -> str:
    """A short line for a host without a run, while other hosts have one."""
    gpus = host.gpus
    if not gpus:
        return f"no run on {host.name}" if host.is_reached else host.idle
    busy = sum(1 for gpu in gpus if gpu.processes or gpu.util)
    many = "1 GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs"
    return f"no run on {host.name}: {many}, {busy} in use"
