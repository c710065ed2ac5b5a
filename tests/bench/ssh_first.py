"""How long after ssh is up `dpwatch ssh` shows the first record: `python -m tests.bench.ssh_first`.

An ssh server of its own on loopback, a run of 8 ranks, the real command on a pseudo terminal. ssh
itself notes when it has logged in (`LocalCommand`); from then on it is dpwatch's time, until a step
stands on the screen. Taken in turns with and without a delay of the network (half of it each way).
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

from tests.bench.terminal import Dashboard
from tests.frames import ddp_run
from tests.hubs import rank, serving
from tests.sshd import MISSING, Sshd, sshd


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--round-trip-ms", type=float, nargs="+", default=[0.0, 100.0])
    options = parser.parse_args()
    if MISSING:
        raise SystemExit(MISSING)
    with tempfile.TemporaryDirectory(prefix="b-") as name, sshd(Path(name)) as server:
        os.environ["DPWATCH_RUNTIME_DIR"] = f"{name}/r"
        delays = {ms: Delay(server.port, ms / 2e3) for ms in options.round_trip_ms}
        found: dict[float, list[float]] = {ms: [] for ms in delays}
        with serving() as hub, rank(hub.place) as send:
            for frame in list(ddp_run(steps=5, ranks=8))[:-8]:
                send(frame)
            for _ in range(options.times):
                for ms, delay in delays.items():
                    found[ms].append(_first_s(server, Path(name), delay.port))
    print("round trip  first record after login, s: median (least to most)")
    for ms, seconds in found.items():
        typical = statistics.median(seconds)
        print(f"{ms:7.0f} ms  {typical:.2f} ({min(seconds):.2f} to {max(seconds):.2f})")


def _first_s(server: Sshd, folder: Path, port: int) -> float:
    """Seconds from ssh's login until a step stands on the screen."""
    noted, note = folder / "up", folder / "note"
    note.write_text(f"#!/bin/sh\ndate +%s.%N >{noted}\n")
    note.chmod(0o755)
    ssh = [*server.ssh, "-p", str(port), "-oPermitLocalCommand=yes",
           f"-oLocalCommand={note}", "-oStrictHostKeyChecking=no"]  # fmt: skip
    environment = {
        **os.environ,
        "DPWATCH_SSH": " ".join(ssh),
        "DPWATCH_REMOTE_DIR": os.environ["DPWATCH_RUNTIME_DIR"],
    }
    with Dashboard(120, 30, environment, "dpwatch", "ssh", "node1") as dashboard:
        dashboard.until("step 5")
        return time.time() - float(noted.read_text())


class Delay:
    """A loopback port that passes everything on, so many seconds later each way.

    Attributes:
        passed: Bytes that have come from the server (`down`) and from its clients (`up`).
    """

    def __init__(self, port: int, seconds: float) -> None:
        self._to = port
        self._seconds = seconds
        self.passed = {"down": 0, "up": 0}
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._socket.accept()
            far = socket.create_connection(("127.0.0.1", self._to))
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for way, source, sink in (("up", near, far), ("down", far, near)):
                threading.Thread(target=self._pass, args=(way, source, sink), daemon=True).start()

    def _pass(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        waiting: list[tuple[float, bytes]] = []
        arrived = threading.Condition()

        def send() -> None:
            while True:
                with arrived:
                    arrived.wait_for(lambda: waiting)
                    due, data = waiting.pop(0)
                time.sleep(max(0.0, due - time.monotonic()))
                try:
                    sink.sendall(data)
                    if not data:
                        sink.shutdown(socket.SHUT_WR)
                        return
                except OSError:
                    return

        threading.Thread(target=send, daemon=True).start()
        data = b"-"
        while data:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            self.passed[way] += len(data)
            with arrived:
                waiting.append((time.monotonic() + self._seconds, data))
                arrived.notify()


if __name__ == "__main__":
    main()
