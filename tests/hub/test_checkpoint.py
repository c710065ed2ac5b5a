"""Checkpoints of a killed hub, and how its successor restores them."""

import os
import stat

import pytest

from dpwatch.hub.checkpoint import EVERY_S, LONGEST_S, Checkpoint
from tests.frames import START_NS, batch, ddp_run, hello, played, step


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def running():
    """A run of a living process."""
    return played([batch(hello(), step(0), pid=os.getpid())])


def kept(path, state):
    clock = Clock()
    checkpoint = Checkpoint(path, clock)
    clock.now_s = EVERY_S
    checkpoint.save(state)
    return checkpoint


def test_a_successor_continues_from_the_checkpoint(tmp_path, running):
    checkpoint = kept(tmp_path / "state", running)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o600
    restored = checkpoint.restore("run", "here", START_NS + 5)
    assert restored.ranks[0].lanes == running.ranks[0].lanes
    assert restored.ranks[0].seen_ns == START_NS + 5  # not silent for as long as there was no hub


def test_other_runs_and_finished_runs_are_not_restored(tmp_path, running):
    checkpoint = kept(tmp_path / "state", running)
    assert checkpoint.restore("another", "here", 0) is None
    assert checkpoint.restore("run", "there", 0) is None  # these processes are not of this host
    over = kept(tmp_path / "state", played(ddp_run(steps=2, ranks=2)))
    assert over.restore("run", "here", 0) is None


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x91" * 5000, b"\x92\x01\xc0"])
def test_an_invalid_file_is_ignored(tmp_path, content):
    (tmp_path / "state").write_bytes(content)
    assert Checkpoint(tmp_path / "state").restore("run", "here", 0) is None


def test_checkpoints_are_written_at_intervals(tmp_path, running):
    clock = Clock()
    checkpoint = Checkpoint(tmp_path / "state", clock)
    checkpoint.save(running)
    assert not (tmp_path / "state").exists()
    clock.now_s = EVERY_S
    checkpoint.save(running)
    assert (tmp_path / "state").exists()


def test_a_failed_write_does_not_raise(tmp_path, running):
    clock = Clock()
    checkpoint = Checkpoint(tmp_path / "missing" / "state", clock)
    clock.now_s = EVERY_S
    checkpoint.save(running)
    checkpoint.save(running)


def test_a_slow_write_stops_checkpoints_and_removes_the_file(tmp_path, running):
    class Slow(Clock):
        def __call__(self):
            self.now_s += LONGEST_S
            return self.now_s

    clock = Slow()
    checkpoint = Checkpoint(tmp_path / "state", clock)
    clock.now_s += EVERY_S
    checkpoint.save(running)
    assert list(tmp_path.iterdir()) == []
