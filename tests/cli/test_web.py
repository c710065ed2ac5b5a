"""`dpwatch --web`: the dashboard in a browser, for who has the token, on loopback only."""

import argparse
import asyncio
import json
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

from dpwatch.cli import settings
from dpwatch.cli.watch import _flags
from dpwatch.cli.web import COOKIE, Gate
from dpwatch.hub import processes

DEADLINE_S = 90


@pytest.fixture
def served(private_runtime, request):
    """The server as a process, with a test's own flags: its address, and the process."""
    with subprocess.Popen(
        [sys.executable, "-m", "dpwatch", "--web", *getattr(request, "param", ())],
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
        assert (status, text) == (403, "dpwatch: open the address that dpwatch printed\n")
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


def page_of(base, token, session, size="width=80&height=24"):
    """What a browser's page opens: the dashboard's terminal."""
    headers = {"Cookie": f"{COOKIE}={token}", "Origin": base}
    return session.ws_connect(f"{base}/ws?{size}", headers=headers)


async def drawn_until(browser, words):
    """All that has been drawn up to these words."""
    drawn = b""
    while words.encode() not in drawn:
        message = await asyncio.wait_for(browser.receive(), DEADLINE_S)
        assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), drawn
        drawn += message.data if isinstance(message.data, bytes) else b""
    return drawn.decode()


FLAGS = ("--theme", "light", "--ascii", "--interval", "1", "--view", "alerts")


@pytest.mark.parametrize("served", [FLAGS], indirect=True)
async def test_the_page_takes_the_flags_and_the_server_ends_at_once(served):
    base, token, process = served
    async with aiohttp.ClientSession() as session:
        async with page_of(base, token, session, "width=120&height=30") as page:
            drawn = await drawn_until(page, "Waiting for a run")
            assert "every 1 s" in drawn
            assert "48;2;251;252;253" in drawn  # the light theme's ground
            assert re.search(r"\[(\x1b\[[\d;]*m)*8 (\x1b\[[\d;]*m)*Alerts", drawn)
            assert drawn.isascii()
            (dashboard,) = children(process.pid)
            await page.send_str(json.dumps(["stdin", "q"]))
            while (await asyncio.wait_for(page.receive(), DEADLINE_S)).data is not None:
                pass  # it says good-bye
            await gone(dashboard)
        async with page_of(base, token, session) as page:
            await drawn_until(page, "Overview")
            (dashboard,) = children(process.pid)
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_S) == 0
            assert process.stderr.read() == ""
            await gone(dashboard)


async def gone(pid):
    """Goes on once that process has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while processes.runs(pid) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert not processes.runs(pid)


def test_flags_go_on_as_they_were_given():
    options = argparse.Namespace(theme="safe", ascii=False, interval="1.0", view=None, sort="queue")
    found = settings.effective(options, settings.SCREEN)
    assert _flags(found) == ["--theme=safe", "--no-ascii", "--interval=1.0", "--sort=queue"]


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
    await gone(dashboard)


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
    assert "pip install textual-serve" in told.stderr
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
