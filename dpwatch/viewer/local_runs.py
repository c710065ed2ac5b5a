"""Lists this host's runs, and starts hubs that their ranks have requested."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from dpwatch.runtime import hub_request, spawn
from dpwatch.runtime.listing import list_runs
from dpwatch.runtime.paths import RunDir, runtime_paths

VIEWERS_S = 1.0
"""Age at which a viewer fulfils a rank's request, which `dpwatch run` would have done at once."""

COMES_S = 3.0
"""How long to wait for a hub that was started."""


Start = Callable[[RunDir, Mapping[str, str]], None]


class LocalRuns:
    """Lists runs with a living hub, and starts hubs that ranks have requested.

    Args:
        session: Session number of this `dpwatch run`, which fulfils its own ranks' requests at once
            and no others; "" for a viewer.
        start: Starts a hub; by default `spawn.ensure_hub`.
    """

    def __init__(self, session: str = "", start: Start | None = None) -> None:
        self._session = session
        self._start = start
        self._started: dict[str, float] = {}

    def __call__(self) -> list[RunDir]:
        """Runs, newest first.

        Raises:
            RuntimeDirError: The directory named by `DPWATCH_RUNTIME_DIR` can't be used.
        """
        found = list_runs(self._fulfil)
        for place in found:
            self._started.pop(str(place.path), None)
        return found

    @property
    def places(self) -> tuple[str, ...]:
        """The runtime directories that it searches."""
        return tuple(str(path) for path in runtime_paths())

    @property
    def is_starting_hub(self) -> bool:
        """Whether a hub was started recently and is not listed yet."""
        now = time.monotonic()
        self._started = {p: at for p, at in self._started.items() if now - at < COMES_S}
        return bool(self._started)

    def _fulfil(self, place: RunDir) -> None:
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
