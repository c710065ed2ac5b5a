"""The batch search beside a session: what it reports, and that it leaves nothing behind."""

import os
import signal

import pytest
from msgspec.structs import replace

from dpwatch.demo.batch_search import BatchSearch
from dpwatch.trainer.config import TrainConfig
from tests.processes import eventually, processes_with
from tests.tui.scenes import dp_run, snapshot

CONFIG = TrainConfig(
    strategy="dp", gpus=2, gpu_mem_bytes=600 << 10, seq_len=16, d_model=16, layers=1, heads=1
)
NOW = snapshot(dp_run(state="finished"))


@pytest.fixture
def search(private_runtime):
    made = BatchSearch([CONFIG])
    made.open()
    yield made
    made.close()
    # A killed search's fork server notices once it has imported torch.
    eventually(lambda: not processes_with(str(private_runtime)), "every process gone")


def follow(search, reached):
    """Polls until the resulting snapshot is as wanted."""

    def look():
        search.poll()
        shown = search.shown(NOW, ["run-dp"])
        return shown if reached(shown) else None

    return eventually(look, reached)


def test_the_search_waits_for_the_start_signal(search):
    search.poll()
    shown = search.shown(NOW, ["run-dp"])
    assert shown.runs[0].largest_batch is None
    assert (shown.search.names, shown.search.done, shown.search.within) == (("dp",), 0, "")
    assert (shown.notice, search.error) == ("", "")


@pytest.mark.dist
def test_the_search_reports_tries_and_results(search):
    search.begin()
    search.begin()
    trying = follow(search, lambda shown: shown.search.within)
    assert trying.search.within == "trying 1 a device in 600 KiB"
    found = follow(search, lambda shown: shown.search.done == 1)
    largest = found.runs[0].largest_batch
    assert (largest.strategy, largest.who) == ("dp", "vgpu:0")
    assert largest.fullest_other.fill < largest.limiting.fill <= 1
    eventually(lambda: search.poll() or search._control is None, "its process has ended")
    assert follow(search, lambda shown: True).notice == ""


@pytest.mark.dist
def test_closing_the_search_ends_its_run(search, private_runtime):
    search.begin()
    follow(search, lambda shown: shown.search.within)
    search.close()
    assert processes_with(str(private_runtime)) == []


@pytest.mark.dist
def test_a_killed_search_is_reported(search):
    search.begin()
    follow(search, lambda shown: shown.search.within)
    os.kill(search._child._process.pid, signal.SIGKILL)
    shown = follow(search, lambda shown: shown.search is None)
    assert shown.notice == "the search for the largest batch ended early: its process was killed"
    told = search.shown(replace(NOW, notice="other"), ["run-dp"])
    assert told.notice == "other"
