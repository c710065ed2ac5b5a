"""Headless Chromium, told what to do over its DevTools protocol."""

import asyncio
import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess

import aiohttp

CHROMIUM = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
DEADLINE_S = 90
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
          "--remote-debugging-port=0", "--window-size=1200,800")  # fmt: skip


class Page:
    """One page, the keyboard in it."""

    def __init__(self, socket):
        self._socket = socket
        self._sent = 0
        self.told = []
        """What it has told of its own accord, such as failed loads."""

    async def call(self, method, **parameters):
        """Asks for something, and returns its answer."""
        self._sent += 1
        await self._socket.send_json({"id": self._sent, "method": method, "params": parameters})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), DEADLINE_S)
            if message.get("id") == self._sent:
                assert "error" not in message, message
                return message["result"]
            self.told.append(message)

    async def value(self, expression):
        """A JavaScript expression's value; promises are waited for."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        return found["result"].get("value")

    async def until(self, expression):
        """Goes on once it is true."""
        for _ in range(DEADLINE_S * 10):
            if await self.value(expression):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"never true: {expression}")

    async def key(self, char):
        """Presses a key."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": char} if kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=char, **text)

    async def colours(self):
        """How much of the page is of which colour: `#rrggbb` and shares, the commonest first."""
        shot = await self.call("Page.captureScreenshot")
        return await self.value(_COUNT.replace("PNG", shot["data"])), base64.b64decode(shot["data"])


_COUNT = """(async () => {
  const image = new Image(); image.src = 'data:image/png;base64,PNG'; await image.decode();
  const canvas = document.createElement('canvas');
  canvas.width = image.width; canvas.height = image.height;
  const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, image.width, image.height).data, seen = {};
  for (let i = 0; i < data.length; i += 4) {
    const name = '#' + [0, 1, 2].map(j => data[i + j].toString(16).padStart(2, '0')).join('');
    seen[name] = (seen[name] || 0) + 4 / data.length;
  }
  return Object.entries(seen).sort((a, b) => b[1] - a[1]).slice(0, 20);
})()"""


@contextlib.asynccontextmanager
async def browsing(folder):
    """A page of a browser of its own, whose profile lies in that folder."""
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            port = await asyncio.wait_for(asyncio.to_thread(_port, process), DEADLINE_S)
            async with aiohttp.ClientSession() as session:
                async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as found:
                    address = (await found.json())["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    page = Page(socket)
                    for domain in ("Page", "Runtime", "Log", "Network"):
                        await page.call(f"{domain}.enable")
                    await page.call("Emulation.setFocusEmulationEnabled", enabled=True)
                    yield page
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.stderr.close()


def _port(process):
    for line in process.stderr:
        if found := re.search(r"ws://127\.0\.0\.1:(\d+)/", line):
            return int(found[1])
    raise AssertionError("the browser has not started")
