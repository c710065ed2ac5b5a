"""`dpwatch --web` in a real browser: what is drawn there, keys, quitting."""

import re
import subprocess
import sys

import pytest

from tests.browser import CHROMIUM, browsing

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


async def test_the_dashboard_in_chromium(private_runtime, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "dpwatch", "--web", "--theme", "light", "--view", "compare"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            address = re.search(r"http://\S+", server.stdout.readline())[0]
            async with browsing(tmp_path / "profile") as page:
                await page.call("Page.navigate", url=address)
                await page.until("document.body.classList.contains('-first-byte')")
                assert "token" not in await page.value("location.href")
                ((ground, most), *rest), picture = await drawn(page, "#fbfcfd")
                (tmp_path / "page.png").write_bytes(picture)  # to be looked at
                assert ground == "#fbfcfd"
                assert most > 0.5
                assert {"#e6ebf0", "#f1f4f7"} <= {name for name, _ in rest}  # header and views
                before = rest
                await page.key("?")
                for _ in range(100):
                    (_, *rest), _ = await drawn(page, "#fbfcfd")
                    if rest != before:
                        break
                assert rest != before, "the key has changed nothing"
                await page.key("q")
                await page.until("document.body.classList.contains('-closed')")
                assert not loaded_from_elsewhere(page, address)
        finally:
            server.kill()
            server.communicate()


async def drawn(page, colour):
    """The page's colours, once most of it is of that one: it fades in."""
    for _ in range(100):
        found, picture = await page.colours()
        if found[0][0] == colour:
            break
    return found, picture


def loaded_from_elsewhere(page, address):
    """Addresses of other hosts that the page was given something from."""
    base = address.partition("/?")[0]
    return [
        url
        for told in page.told
        if told["method"] == "Network.responseReceived"
        and not (url := told["params"]["response"]["url"]).startswith((base, "data:", "ws:"))
    ]
