"""An ssh server of one's own on a loopback port, for one user and as long as a test lasts."""

import getpass
import os
import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
MISSING = (
    "" if SSHD and shutil.which("ssh") else "needs ssh and sshd: apt-get install openssh-server"
)

PASSPHRASE = "passphrase of the locked key"


class Sshd:
    """The server, and the ssh command that reaches it as `node1`, `node2`, …

    `nowhere` is refused, `behind` is reached through a jump host, to get to `asks` a passphrase is
    wanted and for `behind-asks` by its jump host, and `replaced` is known by another key.

    Sessions find programs in `bin` first, and keep their files in `tmp`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        for name, passphrase in (("host", ""), ("user", ""), ("locked", PASSPHRASE)):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(folder / name)],
                check=True,
            )
        public = [(folder / f"{name}.pub").read_text() for name in ("user", "locked")]
        (folder / "authorized").write_text("".join(public))
        for name in ("bin", "tmp"):
            (folder / name).mkdir()
        self.config = folder / "sshd_config"
        self.config.write_text(
            f"""Port {self.port}
ListenAddress 127.0.0.1
HostKey {folder / "host"}
AuthorizedKeysFile {folder / "authorized"}
PidFile {folder / "pid"}
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
AcceptEnv DPWATCH_*
SetEnv PATH={folder / "bin"}:/usr/bin:/bin TMPDIR={folder / "tmp"}
"""
        )
        client = folder / "ssh_config"
        client.write_text(
            f"""Host nowhere
  Port 1
Host behind
  ProxyJump jump
Host asks
  IdentityFile {folder / "locked"}
Host behind-asks
  ProxyJump asks
Host replaced
  HostKeyAlias replaced
  StrictHostKeyChecking yes
Host * !asks
  IdentityFile {folder / "user"}
Host *
  HostName 127.0.0.1
  Port {self.port}
  User {getpass.getuser()}
  IdentitiesOnly yes
  StrictHostKeyChecking accept-new
  UserKnownHostsFile {folder / "known"}
"""
        )
        key = (folder / "user.pub").read_text().split()[1]
        (folder / "known").write_text(f"replaced ssh-ed25519 {key}\n")
        self.ssh = ["ssh", "-F", str(client)]
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        """Starts it, and returns when it accepts connections."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(self.config)], stderr=log, start_new_session=True
            )
        for _ in range(600):
            with socket.socket() as sock:
                if not sock.connect_ex(("127.0.0.1", self.port)):
                    return
            threading.Event().wait(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """Ends the server and every connection to it."""
        if self.process is not None:
            for pid in self.connections():
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            self.process.kill()
            self.process.wait()
            self.process = None

    def connections(self) -> list[int]:
        """Its sessions' processes."""
        if self.process is None:
            return []
        return _descendants(self.process.pid)


def _descendants(pid: int) -> list[int]:
    found = []
    for child in _children(pid):
        found += [child, *_descendants(child)]
    return found


def _children(pid: int) -> list[int]:
    try:
        told = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in told.split()]


@contextmanager
def sshd(folder: Path):
    server = Sshd(folder)
    try:
        yield server
    finally:
        server.stop()
