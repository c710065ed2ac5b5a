"""The launcher in this process, with a fork server that stays warm between tests."""

from __future__ import annotations

import os
import signal
from importlib import import_module

import pytest

from dpwatch.runtime.paths import run_dir
from dpwatch.trainer.config import ConfigError
from dpwatch.trainer.forkserver import ForkServer
from dpwatch.trainer.launch import StopSwitch, launch
from dpwatch.trainer.messages import RunEnded, RunProgress, RunStarted

from .support import Watched, tiny

pytestmark = pytest.mark.dist


class Events(list):
    """Records events; `on` maps an event's type to an action for its first occurrence."""

    def __init__(self, **on):
        super().__init__()
        self._on = on
        self.watched = None

    def __call__(self, event):
        if isinstance(event, RunStarted):
            self.watched = Watched(list(event.pids))
        self.append(event)
        action = self._on.pop(type(event).__name__, None)
        if action is not None:
            action(event)

    def of(self, kind):
        return [event for event in self if isinstance(event, kind)]

    @property
    def ended(self) -> RunEnded:
        (event,) = self.of(RunEnded)
        return event


def test_strategies_run_in_turn_and_finish(server):
    configs = [tiny("single"), tiny("dp", gpus=3), tiny("ddp")]
    events = Events()
    assert launch(configs, run_ids=["a", "b", "c"], on_event=events, server=server) == 0
    kinds = [(type(e), e.run_id) for e in events if not isinstance(e, RunProgress)]
    assert kinds == [(kind, run) for run in "abc" for kind in (RunStarted, RunEnded)]
    assert [len(e.pids) for e in events.of(RunStarted)] == [1, 1, 2]
    last = {e.run_id: e.progress for e in events.of(RunProgress)}
    assert [last[run].step for run in "abc"] == [8, 8, 8]
    assert all(progress.samples_per_s > 0 for progress in last.values())
    assert [e.reason for e in events.of(RunEnded)] == ["", "", ""]
    assert events.watched.all_end()


def test_a_rank_that_raises_ends_the_others_with_one_line(server, sabotage):
    events = Events()
    assert launch([tiny("raises", gpus=3)], on_event=events, server=server) == 1
    assert events.ended.reason == "rank 1: RuntimeError: the cooling has failed"
    assert "Traceback" in events.ended.trace
    assert events.watched.all_end()


def test_a_rank_that_exits_silently_is_named(server, sabotage):
    events = Events()
    assert launch([tiny("dies")], on_event=events, server=server) == 1
    pids = events.of(RunStarted)[0].pids
    assert (
        events.ended.reason
        == f"rank 1 (pid {pids[1]}) exited with code 7 without reporting an error"
    )
    assert events.watched.all_end()


def test_a_killed_rank_is_named_and_the_others_end(server):
    def kill(event):
        os.kill(started[0].pids[2], signal.SIGKILL)

    events = Events(RunProgress=kill)
    started = events
    config = tiny("ddp", gpus=3, steps=None)
    assert launch([config], on_event=events, server=server) == 1
    pid = events.of(RunStarted)[0].pids[2]
    assert events.ended.reason.startswith(f"rank 2 (pid {pid}) was killed by SIGKILL; ")
    assert events.watched.all_end()


def test_a_runs_start_is_reported_before_its_progress(server, monkeypatch):
    """The rank finishes its first step before the launcher knows that it was forked."""
    module = import_module("dpwatch.trainer.launch")
    really_wait = module.wait

    def hears_ranks_first(sources, patience_s):
        pipes = [each for each in sources if each not in (server.control, stop)]
        return really_wait(pipes, 30) if pipes and not heard else really_wait(sources, patience_s)

    def hear(run, rank):
        heard.append(rank)
        really_hear(run, rank)

    heard = []
    really_hear = module._Run._on_message
    monkeypatch.setattr(module, "wait", hears_ranks_first)
    monkeypatch.setattr(module._Run, "_on_message", hear)
    stop, events = StopSwitch(), Events()
    assert launch([tiny("dp")], on_event=events, stop=stop, server=server) == 0
    stop.close()
    assert [type(event) for event in events[:2]] == [RunStarted, RunProgress]


def test_a_rank_stopped_by_somebody_else_ends_the_run(server):
    events = Events(RunProgress=lambda e: os.kill(events[0].pids[0], signal.SIGTERM))
    assert launch([tiny("dp", steps=None)], on_event=events, server=server) == 1
    pid = events.of(RunStarted)[0].pids[0]
    assert events.ended.reason == f"rank 0 (pid {pid}) was stopped by SIGTERM"


@pytest.mark.parametrize("strategy", ["dp", "ddp"])
def test_a_stop_ends_this_run_and_the_following_ones(server, strategy):
    stop = StopSwitch()
    events = Events(RunProgress=lambda event: stop.request(signal.SIGINT))
    configs = [tiny(strategy, steps=None), tiny("single")]
    assert launch(configs, on_event=events, stop=stop, server=server) == 130
    stop.close()
    assert events.ended.reason == ""
    assert len(events.of(RunStarted)) == 1
    assert events.watched.all_end()


def test_a_stop_ends_even_ranks_that_are_stuck(server, sabotage, monkeypatch):
    monkeypatch.setattr(import_module("dpwatch.trainer.launch"), "GRACE_S", 0.2)
    stop = StopSwitch()
    events = Events(RunProgress=lambda event: stop.request(signal.SIGTERM))
    assert launch([tiny("sticks")], on_event=events, stop=stop, server=server) == 143
    stop.close()
    assert events.watched.all_end()


def test_a_stop_before_the_start_starts_nothing(server):
    stop = StopSwitch()
    stop.request(signal.SIGTERM)
    events = Events()
    assert launch([tiny("ddp")], on_event=events, stop=stop, server=server) == 143
    stop.close()
    assert [type(event) for event in events] == [RunEnded]


def test_an_error_in_the_callers_callback_leaves_no_rank(server):
    def fail(event):
        raise LookupError("the caller's own")

    events = Events(RunProgress=fail)
    with pytest.raises(LookupError):
        launch([tiny("ddp", steps=None)], on_event=events, server=server)
    assert events.watched.all_end()


def test_what_does_not_fit_starts_nothing(server):
    events = Events()
    huge = tiny("ddp", d_model=1 << 15, layers=100)
    with pytest.raises(ConfigError, match="reduce --d-model"):
        launch([tiny("single"), huge], on_event=events, server=server)
    assert events == []


@pytest.mark.parametrize("strategy", ["dp", "ddp"])
def test_losses_are_bit_identical_with_and_without_the_probe(server, strategy, monkeypatch):
    def losses():
        events = Events()
        assert launch([tiny(strategy)], run_ids=["r"], on_event=events, server=server) == 0
        return events.of(RunProgress)[-1].progress.loss

    without = losses()
    monkeypatch.setenv("DPWATCH", "1")
    place = run_dir("r")
    lock = place.try_lock()  # stands in for a hub, so that the probe starts none
    try:
        assert losses() == without
    finally:
        os.close(lock)


def test_ranks_find_their_modules_imported(private_runtime, monkeypatch, capfd):
    """The server imports the probe too: each rank would spend a fifth of a second on it."""
    monkeypatch.delenv("DPWATCH")
    monkeypatch.setenv("DPWATCH_HUB_LINGER_S", "0")
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    with ForkServer() as server:
        assert launch([tiny("ddp"), tiny("zero2")], server=server) == 0
    lines = capfd.readouterr().err.splitlines()
    imported = [line.split("|")[-1].strip() for line in lines if line.startswith("import time:")]
    assert "dpwatch.probe.steps.tracker" in imported
    ours = [name for name in imported if name.startswith("dpwatch.")]
    again = {name for name in ours if ours.count(name) > 1}
    assert not {name for name in again if not name.startswith("dpwatch.trainer.strategies.")}
