"""This host's runs, and the hubs that their ranks want somebody to start."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from dpwatch.runtime import hub_request, spawn
from dpwatch.runtime.listing import list_runs
from dpwatch.runtime.paths import RunDir, runtime_paths

VIEWERS_S = 1.0
"""After so long a viewer meets a rank's request: `dpwatch run` would have done so at once."""

COMES_S = 3.0
"""How long a hub that was started is waited for."""


Start = Callable[[RunDir, Mapping[str, str]], None]


class LocalRuns:
    """Lists runs with a living hub, and starts hubs where ranks want them.

    Args:
        session: The number of the `dpwatch run` that this is, whose ranks' requests are met at
            once, and no others; "" for a viewer.
        start: Starts a hub.
    """

    def __init__(self, session: str = "", start: Start | None = None) -> None:
        self._session = session
        self._start = start
        self._started: dict[str, float] = {}

    def __call__(self) -> list[RunDir]:
        """Runs, newest first.

        Raises:
            RuntimeDirError: `DPWATCH_RUNTIME_DIR` names what can't be used.
        """
        found = list_runs(self._meet)
        for place in found:
            self._started.pop(str(place.path), None)
        return found

    @property
    def places(self) -> tuple[str, ...]:
        """The directories that it looks into."""
        return tuple(str(path) for path in runtime_paths())

    @property
    def awaits(self) -> bool:
        """Whether a hub was started a moment ago and is not here yet."""
        now = time.monotonic()
        self._started = {p: at for p, at in self._started.items() if now - at < COMES_S}
        return bool(self._started)

    def _meet(self, place: RunDir) -> None:
        wanted = hub_request.read(place)
        if wanted is None or str(place.path) in self._started:
            return
        if hub_request.is_stale(wanted):
            place.remove_if_idle()
        elif self._is_ours(place, wanted) and spawn.fulfil(place, wanted, self._start):
            self._started[str(place.path)] = time.monotonic()

    def _is_ours(self, place: RunDir, wanted: hub_request.HubRequest) -> bool:
        if self._session:
            return wanted.environment.get(hub_request.SESSION) == self._session
        try:
            return time.time() - place.wanted_file.stat().st_mtime >= VIEWERS_S
        except OSError:
            return False
