"""Several "hosts" on one machine: network, host name and monotonic clock of their own.

Each is a network namespace with one interface on a bridge (which lies in a namespace of its own, so
nothing of this shows outside), and what runs there has a UTS and a time namespace beside.
"""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NET = "10.77.0"
PORT = 29507


def missing():
    """Why there can be no such hosts here, "" if there can."""
    if sys.platform != "linux" or os.geteuid():
        return "network namespaces need root on Linux"
    for tool in ("ip", "tc", "unshare"):
        if shutil.which(tool) is None:
            return f"there is no {tool} here"
    name = f"dpw{os.getpid()}x"
    tried = _run("ip", "netns", "add", name)
    if tried.returncode:
        return f"no network namespaces: {tried.stderr.strip()}"
    _run("ip", "netns", "del", name)
    return ""


def has_time_namespaces():
    return Path("/proc/self/ns/time").exists()


def _run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def _must(*command):
    done = _run(*command)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@dataclass
class Host:
    name: str
    netns: str
    address: str
    ahead_s: int
    folder: Path

    @property
    def runtime(self):
        return self.folder / "rt"

    def start(self, *command, env, **more):
        """Starts a command on this host."""
        inside = ["ip", "netns", "exec", self.netns]
        inside += ["unshare", "--mount", "--uts", "--fork", "--kill-child"]
        if has_time_namespaces():
            inside += ["--time", "--monotonic", str(self.ahead_s)]
        setup = f"mount --bind {self.folder}/hosts /etc/hosts && hostname {self.name}"
        words = [*inside, "sh", "-c", f'{setup} && exec "$@"', "sh", *command]
        return subprocess.Popen(
            words,
            env={**env, "DPWATCH_RUNTIME_DIR": str(self.runtime), "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **more,
        )

    def link(self, state):
        """Takes the host's network `up` or `down`."""
        _must("ip", "-n", self.netns, "link", "set", "eth0", state)

    def shape(self, port, rate, queue=1):
        """What goes to or from that TCP port leaves at this rate, and beyond a short queue not."""
        tc = ("tc", "-n", self.netns)
        _must(*tc, "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb", "default", "10")
        for number, speed in ((10, "10gbit"), (20, rate)):
            _must(*tc, "class", "add", "dev", "eth0", "parent", "1:", "classid", f"1:{number}",
                  "htb", "rate", speed, "quantum", "1600")  # fmt: skip
        _must(*tc, "qdisc", "add", "dev", "eth0", "parent", "1:20", "pfifo", "limit", str(queue))
        for side in ("dport", "sport"):
            _must(*tc, "filter", "add", "dev", "eth0", "parent", "1:", "protocol", "ip", "u32",
                  "match", "ip", side, str(port), "0xffff", "flowid", "1:20")  # fmt: skip

    def unshape(self):
        """All goes at full speed again."""
        _must("tc", "-n", self.netns, "qdisc", "del", "dev", "eth0", "root")


@contextmanager
def hosts(folder, ahead_s):
    """Hosts that reach each other, one for each number: seconds that its clock is ahead."""
    mark = f"dpw{os.getpid()}"
    with ExitStack() as undo:
        switch = _netns(f"{mark}sw", undo)
        _must("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        _must("ip", "-n", switch, "link", "set", "br0", "up")
        found = []
        names = "127.0.0.1 localhost\n"
        names += "".join(f"{NET}.{index + 1} host{index}\n" for index in range(len(ahead_s)))
        for index, ahead in enumerate(ahead_s):
            netns = _netns(f"{mark}h{index}", undo)
            host = Host(f"host{index}", netns, f"{NET}.{index + 1}", ahead, folder / f"h{index}")
            host.runtime.mkdir(parents=True, mode=0o700)
            (host.folder / "hosts").write_text(names)
            _must("ip", "-n", switch, "link", "add", f"p{index}", "type", "veth",
                  "peer", "name", "eth0", "netns", netns)  # fmt: skip
            _must("ip", "-n", switch, "link", "set", f"p{index}", "master", "br0", "up")
            _must("ip", "-n", netns, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _must("ip", "-n", netns, "link", "set", device, "up")
            found.append(host)
        yield found


def _netns(name, undo):
    _must("ip", "netns", "add", name)
    undo.callback(_remove, name)
    return name


def _remove(name):
    """With everything that still runs in it: it was started there."""
    for pid in _run("ip", "netns", "pids", name).stdout.split():
        with suppress(OSError):
            os.kill(int(pid), signal.SIGKILL)
    _run("ip", "netns", "del", name)
