"""`dpwatch --web`: the same dashboard in a browser on this host, by textual-serve.

It listens on loopback only, and admits only clients that know the printed address: the first
request carries a token, which becomes a cookie; without it every request is refused. Requests for
other host names and from pages of other sites are refused too, so that no page can talk to it.
"""

from __future__ import annotations

import hmac
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dpwatch.cli.errors import FINE, CommandError

if TYPE_CHECKING:
    from aiohttp import web

HOST = "127.0.0.1"
COOKIE = "dpwatch"
END_WITHIN_S = 0.5
"""How long open pages have to close by themselves when the server stops."""
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self' ws:; frame-ancestors 'none'"
)
"""Loads nothing from elsewhere, not even the page's own web font."""
TO_THE_KEYS = """<script>
new MutationObserver((changes, observer) => {
  const keys = document.querySelector(".xterm-helper-textarea");
  if (keys) { observer.disconnect(); keys.focus(); }
}).observe(document.body, {childList: true, subtree: true});
</script>"""
"""Focuses the terminal as soon as it exists, without a click."""


def serve(port: int, flags: Sequence[str] = ()) -> int:
    """Serves until interrupted.

    Args:
        port: The port to listen on, 0 for any free one.
        flags: The dashboard's flags.

    Raises:
        CommandError: textual-serve is not installed, or the port is taken.
    """
    try:
        from textual_serve.server import Server
    except ImportError:
        raise CommandError("the browser needs textual-serve: pip install textual-serve") from None
    from aiohttp import web

    with _listening(port) as listener:
        gate = Gate(listener.getsockname()[1])

        class Dashboard(Server):
            """textual-serve's server behind the gate, without its banner."""

            async def _make_app(self) -> web.Application:
                app = await super()._make_app()
                app.middlewares.append(gate.middleware())
                return app

            async def on_startup(self, app: web.Application) -> None:
                """Has nothing to say yet."""

        # Replaces the shell, so that the dashboard's parent is this server (see `end_with`).
        command = f"exec {shlex.join([sys.executable, '-m', 'dpwatch', *flags])}"
        server = Dashboard(command, host=HOST, port=gate.port, title="dpwatch")
        web.run_app(
            server._make_app(),
            sock=listener,
            access_log=None,
            shutdown_timeout=END_WITHIN_S,
            print=lambda *_: print(f"dpwatch: {gate.address} (Ctrl-C stops it)", flush=True),
        )
    return FINE


def end_with(parent: int, every_s: float = 1.0) -> None:
    """Ends this process soon after its parent; otherwise it would outlive a killed server."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os._exit(1)

    threading.Thread(target=watch, name="dpwatch-parent", daemon=True).start()


class Gate:
    """Admits requests with the token, to loopback, from no other site."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.token = secrets.token_urlsafe(24)
        self.hosts = frozenset({f"{HOST}:{port}", f"localhost:{port}"})
        self.address = f"http://{HOST}:{port}/?token={self.token}"

    def middleware(self) -> Any:
        """For aiohttp."""
        from aiohttp import web

        @web.middleware
        async def gate(request: web.Request, handler: Any) -> web.StreamResponse:
            if not self.is_from_here(request.host, request.headers.get("Origin")):
                raise web.HTTPForbidden(text="dpwatch: only from this host\n")
            told = request.query.get("token")
            if told is not None and self.knows(told):
                response: web.StreamResponse = web.HTTPFound("/")
                response.set_cookie(COOKIE, self.token, httponly=True, samesite="Strict", path="/")
                return response
            if not self.knows(request.cookies.get(COOKIE, "")):
                raise web.HTTPForbidden(text="dpwatch: open the address that dpwatch printed\n")
            response = await handler(request)
            if isinstance(response, web.Response) and response.content_type == "text/html":
                response.text = (response.text or "").replace("</body>", f"{TO_THE_KEYS}</body>")
            if not response.prepared:
                response.headers["Content-Security-Policy"] = POLICY
                response.headers["Referrer-Policy"] = "no-referrer"
            return response

        return gate

    def knows(self, token: str) -> bool:
        """Whether it is the token."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    def is_from_here(self, host: str, origin: str | None) -> bool:
        """Whether a request is for this server's name, and from none of another site's pages."""
        return host in self.hosts and (
            origin is None or origin.removeprefix("http://") in self.hosts
        )


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise CommandError(
            f"cannot listen on port {port}: {getattr(error, 'strerror', error)}; use another --port"
        ) from None
