"""`dpwatch --web`: the dashboard in a browser, for who has the token, on loopback only."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from dpwatch.cli.web import COOKIE, Gate
from dpwatch.hub import processes

DEADLINE_S = 90


@pytest.fixture
def served(private_runtime):
    """The server as a process: its address, and the process."""
    with subprocess.Popen(
        [sys.executable, "-m", "dpwatch", "--web"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            line = process.stdout.readline()
            found = re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", line)
            assert found, line + process.stderr.read()
            yield found[1], found[2], process
        finally:
            process.kill()
            process.communicate()


async def fetch(url, **options):
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
        session.get(url, **options) as response,
    ):
        return response.status, await response.text(), response.headers


async def test_only_who_has_the_token_gets_in(served):
    base, token, _ = served
    for url in (base, f"{base}/ws", f"{base}/static/js/textual.js", f"{base}/?token=x{token}"):
        status, text, _ = await fetch(url)
        assert (status, text) == (403, "dpwatch: open the address it printed\n")
    status, text, headers = await fetch(f"{base}/?token={token}")
    assert status == 200
    assert "textual.js" in text
    assert token not in text
    assert "font-src 'self'" in headers["Content-Security-Policy"]


async def test_other_names_and_other_sites_are_refused(served):
    base, token, _ = served
    cookie = {"Cookie": f"{COOKIE}={token}"}
    assert (await fetch(base, headers=cookie))[0] == 200
    port = base.rpartition(":")[2]
    for odd in ({"Host": f"evil.example:{port}"}, {"Origin": "http://evil.example"}):
        status, text, _ = await fetch(base, headers={**cookie, **odd})
        assert (status, text) == (403, "dpwatch: only from this host\n")


async def test_the_dashboard_itself_comes_through_the_socket(served):
    base, token, process = served
    headers = {"Cookie": f"{COOKIE}={token}", "Origin": base}
    drawn = b""
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.ws_connect(f"{base}/ws?width=80&height=24") as browser,
    ):
        while b"Overview" not in drawn:
            message = await asyncio.wait_for(browser.receive(), DEADLINE_S)
            assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), message
            drawn += message.data if isinstance(message.data, bytes) else b""
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 0


def children(pid):
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in told.split()]


async def test_a_killed_server_leaves_no_dashboard_behind(served):
    base, token, process = served
    headers = {"Cookie": f"{COOKIE}={token}", "Origin": base}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.ws_connect(f"{base}/ws?width=80&height=24") as browser,
    ):
        await asyncio.wait_for(browser.receive(), DEADLINE_S)
        (dashboard,) = children(process.pid)
        process.kill()
        process.wait()
    deadline = time.monotonic() + DEADLINE_S
    while processes.runs(dashboard) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    assert not processes.runs(dashboard)


def test_it_listens_on_loopback_only(served):
    base, _, process = served
    port = int(base.rpartition(":")[2])
    with open(f"/proc/{process.pid}/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    listening = {row[1] for row in rows if row[3] == "0A" and int(row[1][-4:], 16) == port}
    assert listening == {f"0100007F:{port:04X}"}


def command(*words, **env):
    return subprocess.run(
        [sys.executable, "-m", "dpwatch", *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, **env},
    )


def test_errors_are_one_line_that_says_what_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = command("--web", "--port", str(port))
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert f"cannot listen on port {port}" in told.stderr
    (tmp_path / "textual_serve").mkdir()  # an empty one, without its server
    (tmp_path / "textual_serve" / "__init__.py").touch()
    told = command("--web", PYTHONPATH=str(tmp_path))
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "pip install 'dpwatch[web]'" in told.stderr
    assert command("--web", "--once").returncode == 2
    assert command("--port", "1").returncode == 2


def test_the_gate():
    gate = Gate(8123)
    assert gate.knows(gate.token)
    assert not gate.knows("")
    assert not gate.knows("é")
    assert gate.is_from_here("127.0.0.1:8123", None)
    assert gate.is_from_here("localhost:8123", "http://127.0.0.1:8123")
    assert not gate.is_from_here("127.0.0.1:8124", None)
    assert not gate.is_from_here("127.0.0.1:8123", "https://127.0.0.1:8123")
    assert Gate(8123).token != gate.token
