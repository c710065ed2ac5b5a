"""The hosts of one `dpwatch ssh`: connected to all at once, each on its own from then on."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dpwatch.run.model.snapshot import HostGpu
from dpwatch.runtime.paths import RunDir
from dpwatch.viewer.remote.agent_script import NAME
from dpwatch.viewer.remote.run_mirror import Workspace
from dpwatch.viewer.remote.ssh_host import SshHost

PATIENCE_S = 2.0
"""How long the screen waits for other hosts once one is there."""

GPUS_S = 6.0
"""How long one look waits for what a host's GPUs do; a driver that nobody holds open is slow."""


class SshError(Exception):
    """No host can be reached; the message says why, as ssh does."""


class SshHosts:
    """All hosts of one viewer, in a private folder that goes when they are closed.

    Args:
        names: As `ssh` takes them.
        ssh: The ssh command and options of the user's own.
        remote_dir: The runtime directory there, where it is none of the usual places.
        remote_dpwatch: A dpwatch there, where it is not on the PATH.
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
        """Connects to all at once, then to those in turn where ssh has something to ask.

        One that is down is tried again later, and nobody waits for one that does not answer
        while another one does.

        Args:
            all_of_them: Wait for every host all the same.

        Returns:
            What went wrong, a line a host.

        Raises:
            SshError: None of them can be reached.
        """
        if len(self.hosts) == 1:
            self.hosts[0].ask()
        else:
            for host in self.hosts:
                host.start()
            self._wait(None if all_of_them else PATIENCE_S)
            for host in self.hosts:
                if host.was_tried(0) and host.wants_person:
                    host.ask()
        wrong = [f"{host.name}: {host.why}" for host in self.hosts if host.why]
        if len(wrong) == len(self.hosts):
            raise SshError("; ".join(wrong))
        for host in self.hosts:
            if not host.is_followed:
                host.start()
            host.go_on()
        return wrong

    def _wait(self, patience_s: float | None) -> None:
        """Until every host has answered; with patience, so long after the first that is up."""
        waiting = list(self.hosts)
        until: float | None = None
        while waiting and (until is None or time.monotonic() < until):
            waiting = [host for host in waiting if not host.was_tried(0.02)]
            if until is None and patience_s is not None and any(h.is_reached for h in self.hosts):
                until = time.monotonic() + patience_s

    def wait_for_gpus(self) -> None:
        """Until it is known what GPUs do on hosts without a run, or one would wait too long."""
        until = time.monotonic() + GPUS_S
        for host in self.hosts:
            while host.is_up and not host.runs() and not host.has_looked:
                if time.monotonic() > until:
                    return
                time.sleep(0.02)

    def runs(self) -> list[RunDir]:
        """All hosts' runs."""
        return [place for host in self.hosts for place in host.runs()]

    def gpus(self) -> tuple[HostGpu, ...]:
        """GPUs of hosts that no run is on."""
        return tuple(gpu for host in self.hosts for gpu in host.gpus)

    @property
    def notice(self) -> str:
        """A line for each host that something is wrong with, or that nothing runs on."""
        runs = bool(self.runs())
        lines = [
            host.trouble or (_at_rest(host) if runs else host.idle)
            for host in self.hosts
            if host.trouble or not host.runs()
        ]
        return "\n".join(lines)

    def close(self) -> None:
        """Ends all connections."""
        for host in self.hosts:
            host.close()
        self._workspace.close()


def _at_rest(host: SshHost) -> str:
    """A host without a run beside others that have one, in few words."""
    gpus = host.gpus
    if not gpus:
        return f"no run on {host.name}" if host.is_reached else host.idle
    busy = sum(1 for gpu in gpus if gpu.processes or gpu.util)
    many = "1 GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs"
    return f"no run on {host.name}: {many}, {busy} in use"
