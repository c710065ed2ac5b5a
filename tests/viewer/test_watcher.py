"""How a viewer follows several runs at once."""

import os
from collections import Counter

from dpwatch.runtime import paths
from dpwatch.runtime.paths import RunInfo
from dpwatch.viewer.follower import Follower
from dpwatch.wire.messages import PROTOCOL_VERSION
from tests.frames import batch, hello, step
from tests.hubs import has, rank, serving, until, watching


def test_a_hub_that_never_answers_costs_the_others_no_questions(monkeypatch):
    asked = Counter()
    ask = Follower.ask

    def counted(follower):
        asked[follower.place.run_id] += 1
        ask(follower)

    monkeypatch.setattr(Follower, "ask", counted)
    silent = paths.run_dir("silent")
    lock = silent.try_lock()
    silent.write_info(RunInfo("silent", "here", os.getpid(), 0.0, PROTOCOL_VERSION, ""))
    try:
        with serving() as hub, rank(hub.place) as send:
            send(batch(hello(), step(0)))
            with watching(places=lambda: [hub.place, silent]) as watcher:
                until(watcher, has("run", steps=1))
                assert not watcher.complete
                asked.clear()
                snapshots = 0
                while snapshots < 5:
                    snapshots += watcher.next(0.1) is not None
                assert asked["run"] <= snapshots + 2
    finally:
        os.close(lock)
